"""BiBERT checkpoints: the file gives what PyTorch gives; what it does not use is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitm_converter.checkpoint import open_checkpoint
from bitm_converter.cli import main
from bitm_converter.errors import CheckpointError, ConfigError, UnknownTensorError
from bitm_converter.packing import Codes, Packed
from bitm_converter.recipes import Conversion, choose
from bitm_formats import DType, Head, Layout, Problem
from families.bibert import BiBert
from families.comparison import compare, convert
from families.low_bit import place_on_the_mean, randomize, save, state_of, torch

LINEARS = ("query", "key", "value", "attention_output", "intermediate", "output")


def make(folder: Path, container: str = "zip", **options: Any) -> tuple[Any, Path]:
    """A model and its checkpoint."""
    family = BiBert(**options)
    model = family.model()
    randomize(model, seed=3)
    return model, save(folder, state_of(model), family.settings, container)


@pytest.mark.parametrize(
    ("head", "n_labels", "container"),
    [
        ("classifier", 3, "zip"),
        ("classifier", 1, "legacy prefixed"),
        ("qa_outputs", 2, "zip wrapped"),
    ],
)
def test_the_file_answers_as_pytorch(
    head: str, n_labels: int, container: str, tmp_path: Path
) -> None:
    model, folder = make(tmp_path / "in", container, head=head, n_labels=n_labels)
    differences = compare(model, convert(folder), tmp_path / "m.bitm", 1e-4)
    assert differences.of_runtime <= 0.1
    assert differences.of_numpy <= 0.1


def test_ternary_weights(tmp_path: Path) -> None:
    model, folder = make(tmp_path / "in", weight_bits=2)
    conversion = convert(folder)
    assert conversion.model.tensors["layers.1.output.weight"].scale_layout == Layout.TENSOR
    assert conversion.model.tensors["embeddings.word.weight"].scale_layout == Layout.ROW
    differences = compare(model, conversion, tmp_path / "m.bitm", 1e-4)
    assert differences.of_runtime <= 0.1


def test_weights_on_their_mean_are_zeros(tmp_path: Path) -> None:
    """They keep their tensor from being bits; all others are."""
    family = BiBert()
    model = family.model()
    randomize(model, seed=4)
    layer = model.bert.encoder.layer[1]
    for n in range(5):
        place_on_the_mean(layer.output.dense.weight.data[n])
    conversion = convert(save(tmp_path / "in", state_of(model), family.settings))
    tensors = conversion.model.tensors
    assert tensors["layers.1.output.weight"].dtype == DType.TERN
    others = [f"layers.{n}.{name}.weight" for n in (0, 1) for name in LINEARS]
    others += ["pooler.weight", "embeddings.word.weight"]
    others.remove("layers.1.output.weight")
    assert {tensors[name].dtype for name in others} == {DType.BIT1}
    assert {tensors[name].scale_layout for name in others} == {Layout.ROW}
    assert compare(model, conversion, tmp_path / "m.bitm", 1e-4).of_runtime <= 0.1


def test_configuration_and_labels(tmp_path: Path) -> None:
    _, folder = make(tmp_path, n_labels=3)
    model = convert(folder).model
    assert (model.config.head, model.config.n_labels) == (Head.CLASSIFIER, 3)
    assert model.config.problem == Problem.ONE_LABEL
    assert model.config.layer_norm_eps == np.float32(1e-3)
    assert model.metadata["source.family"] == "bibert"
    assert model.metadata["label.2"] == "LABEL_2"


def test_one_output_is_a_regression(tmp_path: Path) -> None:
    _, folder = make(tmp_path, n_labels=1)
    assert convert(folder).model.config.problem == Problem.REGRESSION


def test_what_is_ignored_is_told(tmp_path: Path) -> None:
    _, folder = make(tmp_path)
    notes = [note for note in convert(folder).notes if note.startswith("left out: ")]
    # 2 layers of 6 linears, a pooler, and the words, which have no activations
    assert any("14 tensors *.weight_clip_val" in note for note in notes)
    assert any("13 tensors *.act_clip_val" in note for note in notes)
    assert any("8 tensors *.attention.self.clip_*" in note for note in notes)
    assert any("4 tensors *.output.gate" in note for note in notes)


def test_strangers_are_refused_by_name(tmp_path: Path) -> None:
    family = BiBert()
    state = {**state_of(family.model()), "bert.encoder.layer.0.move.bias": torch.zeros(96)}
    folder = save(tmp_path, state, family.settings)
    with pytest.raises(UnknownTensorError, match=r"layer\.0\.move\.bias"):
        convert(folder, family="bibert")


@pytest.mark.parametrize(
    ("key", "value"), [("input_bits", 8), ("weight_bits", 8), ("quantize_act", False)]
)
def test_other_arithmetic_is_refused(key: str, value: object, tmp_path: Path) -> None:
    family = BiBert()
    folder = save(tmp_path, state_of(family.model()), {**family.settings, key: value})
    with pytest.raises(ConfigError, match=f"'{key}': expected .* found {value}"):
        convert(folder)


def test_a_masked_lm_is_refused(tmp_path: Path) -> None:
    family = BiBert()
    state = state_of(family.model())
    del state["classifier.weight"], state["classifier.bias"]
    state["cls.predictions.transform.dense.weight"] = torch.zeros(96, 96)
    state["cls.predictions.transform.dense.bias"] = torch.zeros(96)
    state["cls.predictions.transform.LayerNorm.weight"] = torch.zeros(96)
    state["cls.predictions.transform.LayerNorm.bias"] = torch.zeros(96)
    state["cls.predictions.bias"] = torch.zeros(997)
    folder = save(tmp_path, state, family.settings)
    with pytest.raises(CheckpointError, match="found a masked lm"):
        convert(folder)


def converted_of_signs(folder: Path) -> Conversion:
    """Of weights as the folder quant/ has them."""
    family = BiBert()
    model = family.model()
    randomize(model, seed=5)
    state = {
        name: torch.sign(values) if values.dim() == 2 else values
        for name, values in state_of(model).items()
    }
    return convert(save(folder, state, family.settings))


def test_weights_without_scales_are_warned_of(tmp_path: Path) -> None:
    assert any("quant/" in note for note in converted_of_signs(tmp_path / "quant").notes)
    _, folder = make(tmp_path / "model")
    assert not any("quant/" in note for note in convert(folder).notes)


def test_verification_names_the_layer_that_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = make(tmp_path / "in")
    command = [str(folder), str(tmp_path / "m.bitm"), "--no-vocab", "--verify"]
    assert main(command) == 0
    assert "verify: ok" in capsys.readouterr().out

    def pack(codes: Codes) -> Packed:
        """What is packed is not what the checkpoint means, in the last layer."""
        is_output = codes.codes.shape == (96, 200)
        n_seen.append(is_output)
        return original(replace(codes, scales=codes.scales * (1.1 if sum(n_seen) == 2 else 1)))

    n_seen: list[bool] = []
    original = Codes.pack
    monkeypatch.setattr(Codes, "pack", pack)
    assert main(command) == 1
    assert "hidden states of layer 2: expected a difference of at most" in capsys.readouterr().err


def test_the_family_is_found_by_its_tensors(tmp_path: Path) -> None:
    _, folder = make(tmp_path)
    assert choose(open_checkpoint(folder)).NAME == "bibert"


def test_gelu_underflows_to_a_zero_with_a_code_of_its_own(tmp_path: Path) -> None:
    """Far below 0, GELU is -0.0 in float32: what `output` reads is then 0, not -1."""
    family = BiBert()
    model = family.model()
    randomize(model, seed=6)
    for layer in model.bert.encoder.layer:
        layer.intermediate.dense.weight.data *= 20
    conversion = convert(save(tmp_path / "in", state_of(model), family.settings))
    assert compare(model, conversion, tmp_path / "m.bitm", 1e-4).of_runtime <= 0.1
