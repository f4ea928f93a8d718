"""BinaryBERT: files against a PyTorch model written from the formulas, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitm_converter.cli import main
from bitm_converter.errors import (
    CheckpointError,
    ConfigError,
    ConversionError,
    MissingError,
    ShapeError,
    UnknownTensorError,
)
from bitm_formats import DType, Head, Problem, QuantizerKind, Scope
from families.binarybert import BinaryBert
from families.comparison import compare, convert, convert_model
from families.low_bit import Sizes, save, state_of, torch

HALF = Sizes(attention=48, heads=2)
LAYER = "bert.encoder.layer.0"

# The family, and how far logits may be off.
MODELS: dict[str, tuple[BinaryBert, float]] = {
    "split, 8 bits": (BinaryBert(), 5e-3),
    "split, 4 bits": (BinaryBert("lsq", 4), 1e-3),
    "split, 2 bits": (BinaryBert("lsq", 2), 1e-3),
    "split, uniform 4 bits": (BinaryBert("uniform", 4), 1e-3),
    "split, floats": (BinaryBert("lsq", 32), 1e-4),
    "split, wide numbers": (BinaryBert("lsq", 4, wide=True), 1e-3),
    "split, wide pairs": (BinaryBert("uniform", 8, wide=True), 5e-3),
    "split, half width": (BinaryBert("lsq", 4, sizes=HALF), 1e-3),
    "split, by token": (BinaryBert("uniform", 4, input_layerwise=False), 1e-3),
    "split, steps by token": (BinaryBert("lsq", 4, input_layerwise=False), 1e-3),
    "one matrix, 8 bits": (BinaryBert(split=False), 5e-3),
    "one matrix, 4 bits": (BinaryBert("lsq", 4, split=False), 1e-3),
    "ternary, 8 bits": (BinaryBert(split=False, weight_bits=2), 5e-3),
    "ternary, uniform 4 bits": (BinaryBert("uniform", 4, split=False, weight_bits=2), 1e-3),
    "ternary, half width": (BinaryBert("lsq", 4, False, 2, sizes=HALF), 1e-3),
    "relu": (BinaryBert("uniform", 4, hidden_act="relu"), 1e-3),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, tmp_path: Path) -> None:
    family, tolerance = MODELS[name]
    model = family.model(seed=len(name))
    conversion = convert_model(model, tmp_path)
    assert conversion.model.metadata["source.family"] == "binarybert"
    off = compare(model, conversion, tmp_path / "m.bitm", tolerance)
    assert off.of_runtime <= 0.15
    assert off.of_numpy <= 0.15


@pytest.mark.parametrize(
    ("head", "n_labels", "expected", "problem"),
    [
        ("classifier", 1, Head.CLASSIFIER, Problem.REGRESSION),
        ("qa_outputs", 2, Head.QUESTION_ANSWERING, Problem.NONE),
    ],
)
def test_heads(head: str, n_labels: int, expected: Head, problem: Problem, tmp_path: Path) -> None:
    model = BinaryBert("lsq", 4, head=head, n_labels=n_labels).model(seed=7)
    conversion = convert_model(model, tmp_path)
    config = conversion.model.config
    assert (config.head, config.problem) == (expected, problem)
    assert compare(model, conversion, tmp_path / "m.bitm", 1e-3).of_runtime <= 0.15


def test_what_is_in_the_file_of_a_split_model(tmp_path: Path) -> None:
    model = BinaryBert().model(seed=1)
    conversion = convert_model(model, tmp_path)
    file = conversion.model
    sources = {row.slot: row.source for row in conversion.rows}
    assert sources["layers.1.query.weight"].endswith("1.attention.self.query_1.weight")
    assert sources["layers.1.query.second.bias"].endswith("1.attention.self.query_2.bias")
    assert sources["embeddings.word.second.weight"].endswith("word_embeddings_2.weight")
    assert file.config.layer_norm_eps == np.float32(1e-12)
    # sgn(0) = 0 and some weights are 0; there is a scale for each row of the embeddings.
    words = file.tensors["embeddings.word.second.weight"]
    assert words.dtype == DType.TERN
    latent = model.bert.embeddings.word_embeddings_2.weight.detach()
    assert words.scales is not None
    np.testing.assert_allclose(words.scales, latent.abs().mean(1), rtol=1e-6)

    signed, unsigned = QuantizerKind.DYN_SYM, QuantizerKind.DYN_ASYM
    for place, quantizer in file.quantizers.items():
        is_signed = ".output" not in place and not place.endswith("probabilities")
        assert quantizer.kind == (signed if is_signed else unsigned), place
        assert quantizer.scope == Scope.SEQUENCE
        assert quantizer.eps == (0 if is_signed else np.float32(1e-8))
    assert len(file.quantizers) == 2 * (6 * 2 + 4) + 2
    clips = [file.quantizers[f"layers.0.output{branch}"].clip for branch in ("", ".second")]
    dense = model.bert.encoder.layer[0].output
    for clip, linear in zip(clips, (dense.dense_1, dense.dense_2)):
        assert clip == tuple(linear.input_clip_val.tolist())
    assert clips[0] != clips[1]


def test_matrices_without_zeros_are_single_bits(tmp_path: Path) -> None:
    model = BinaryBert(split=False).model(seed=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[parameter == 0] = 0.01
    file = convert_model(model, tmp_path).model
    dtypes = {name: tensor.dtype for name, tensor in file.tensors.items()}
    assert dtypes["layers.0.query.weight"] == dtypes["embeddings.word.weight"] == DType.BIT1


def test_a_row_of_zeros_is_pointed_out(tmp_path: Path) -> None:
    model = BinaryBert("lsq", 4, split=False, weight_bits=2).model(seed=3)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[[0, 5]] = 0.0
    conversion = convert_model(model, tmp_path)
    assert any("word_embeddings.weight: 2 rows are all zeros" in n for n in conversion.notes)
    assert not conversion.model.tensors["embeddings.word.weight"].to_float32()[[0, 5]].any()
    assert compare(model, conversion, tmp_path / "m.bitm", 1e-3).of_runtime <= 0.15


@pytest.mark.parametrize("family", ["auto", "binarybert"])
def test_the_ternary_stage_without_quantizers(family: str, tmp_path: Path) -> None:
    """Its names are those of a plain BERT: only the configuration tells, or the user."""
    model = BinaryBert("lsq", 32, split=False, weight_bits=2).model(seed=4)
    if family != "auto":
        del model.family.settings["weight_quant_method"]
    conversion = convert_model(model, tmp_path, family=family)
    off = compare(model, conversion, tmp_path / "m.bitm", 1e-4)
    assert (off.of_runtime, off.of_numpy) == (0, 0)


@pytest.mark.parametrize("method", ["uniform", "lsq"])
def test_what_the_names_and_shapes_tell_need_not_be_stated(method: str, tmp_path: Path) -> None:
    model = BinaryBert(method, 4, sizes=HALF).model(seed=5)
    stated = convert_model(model, tmp_path / "a").model
    for key in (
        "weight_bits",
        "input_quant_method",
        "weight_quant_method",
        "input_layerwise",
        "dyna_hidden_size",
    ):
        del model.family.settings[key]
    assert convert_model(model, tmp_path / "b").model.quantizers == stated.quantizers


def test_a_step_of_exactly_1_is_pointed_out(tmp_path: Path) -> None:
    family = BinaryBert("lsq", 4)
    state = state_of(family.model(seed=6))
    state[f"{LAYER}.intermediate.dense_2.input_clip_val"] = torch.tensor(1.0)
    notes = convert(save(tmp_path, state, family.settings)).notes
    assert any("exactly 1.0" in n and "dense_2.input_clip_val" in n for n in notes)


def test_the_command_line_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = BinaryBert()
    folder = save(tmp_path / "model", state_of(family.model(seed=8)), family.settings, "legacy")
    assert main([str(folder), str(tmp_path / "m.bitm"), "--verify"]) == 0
    assert "verify: ok" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input_bits": None}, MissingError, "'input_bits' is needed.*--config"),
        ({"hidden_act": None}, MissingError, "'hidden_act' is needed.*--config"),
        ({"input_bits": 1}, ConfigError, "'input_bits': expected 2, 3, .* or 32, found 1"),
        ({"weight_bits": 2}, ConfigError, "'weight_bits': expected 1, found 2"),
        ({"weight_quant_method": "uniform"}, ConfigError, "expected 'bwn' or 'laq'"),
        ({"input_quant_method": "uniform"}, ConfigError, "expected 'lsq', found 'uniform'"),
        ({"sym_quant_qkvo": False}, ConfigError, "'sym_quant_qkvo': expected True, found False"),
        ({"dyna_hidden_size": 48}, ShapeError, r"expected shape \(48, 96\).*found \(96, 96\)"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(
    changes: dict[str, Any], error: type[ConversionError], message: str, tmp_path: Path
) -> None:
    family = BinaryBert("lsq", 4, sizes=Sizes(layers=1, heads=4))
    state = state_of(family.model(seed=9))
    with pytest.raises(error, match=message):
        convert(save(tmp_path, state, {**family.settings, **changes}))


def test_the_ternary_stage_needs_its_number_of_bits(tmp_path: Path) -> None:
    family = BinaryBert("lsq", 4, split=False, weight_bits=2)
    del family.settings["weight_bits"]
    with pytest.raises(MissingError, match=r"'weight_bits' is needed.*--config"):
        convert(save(tmp_path, state_of(family.model(seed=9)), family.settings))


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("attention.self.clip_attn", None, MissingError, "clip_attn': is needed"),
        ("attention.self.query_2.weight", None, MissingError, "query_2.weight': is needed"),
        ("attention.self.query_2.bias", None, MissingError, "query_2.bias': is needed"),
        ("attention.self.key_1.input_clip_val", None, MissingError, "key_1.input_clip_val': is"),
        ("attention.self.clip_attn", torch.ones(3), ShapeError, r"a pair, found shape \(3,\)"),
        (
            "attention.self.clip_attn",
            torch.tensor([2.0, 1.0]),
            CheckpointError,
            r"ascending order, found \[2.0, 1.0\]",
        ),
        ("attention.self.query_3.weight", torch.ones(2), UnknownTensorError, "query_3.*no part"),
    ],
)
def test_tensors_that_are_refused(
    name: str, value: Any, error: type[ConversionError], message: str, tmp_path: Path
) -> None:
    family = BinaryBert(sizes=Sizes(layers=1))
    state = state_of(family.model(seed=10))
    state.pop(f"{LAYER}.{name}", None)
    if value is not None:
        state[f"{LAYER}.{name}"] = value
    with pytest.raises(error, match=message):
        convert(save(tmp_path, state, family.settings))
