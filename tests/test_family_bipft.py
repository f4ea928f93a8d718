"""BiPFT: files against a PyTorch model written from the formulas, and what the recipe refuses."""

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
from bitm_formats import Activation, Head, Pooler, Problem, QuantizerKind
from families.bipft import BiPft
from families.comparison import compare, convert, convert_model
from families.low_bit import Sizes, save, state_of, torch

TWELVE_HEADS = Sizes(heads=12)
SELF = "bert.encoder.layer.0.attention.self"

MODELS = {
    "twelve heads": BiPft(TWELVE_HEADS),
    "three heads": BiPft(),
    "rank 3": BiPft(rank=3),
    "regression": BiPft(n_labels=1),
    "pretraining": BiPft(head="cls"),
    "products": BiPft(lora_rank=2),
    "scales of rows": BiPft(weight_layerwise=False, embed_layerwise=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, tmp_path: Path) -> None:
    model = MODELS[name].model(seed=len(name))
    conversion = convert_model(model, tmp_path)
    assert conversion.model.metadata["source.family"] == "bipft"
    off = compare(model, conversion, tmp_path / "m.bitm", 1e-4)
    assert off.of_runtime <= 0.1
    assert off.of_numpy <= 0.1


def test_what_is_in_the_file(tmp_path: Path) -> None:
    conversion = convert_model(BiPft(TWELVE_HEADS, n_labels=1).model(seed=1), tmp_path)
    file, config = conversion.model, conversion.model.config
    assert config.problem == Problem.REGRESSION
    assert config.hidden_activation == Activation.GELU
    assert config.pooler == Pooler.NORM_SKIP
    assert config.layer_norm_eps == np.float32(1e-12)
    assert config.pooler_norm_eps == np.float32(1e-3)
    for place, quantizer in file.quantizers.items():
        is_probability = place.endswith("probabilities")
        assert quantizer.kind == (QuantizerKind.INT if is_probability else QuantizerKind.SIGN)
    assert not any("value term" in note for note in conversion.notes)
    assert any("13 tensors *.sa.weight" in note for note in conversion.notes)


def test_other_numbers_of_heads_are_pointed_out(tmp_path: Path) -> None:
    notes = convert_model(BiPft(Sizes(layers=1)).model(seed=1), tmp_path).notes
    assert any("value term" in note and "all 3 heads" in note for note in notes)


@pytest.mark.parametrize("left_out", [(), ("cls.predictions.decoder.weight",)])
def test_the_masked_lm_decodes_by_latent_embeddings(
    left_out: tuple[str, ...], tmp_path: Path
) -> None:
    model = BiPft(head="cls").model(seed=2)
    state = state_of(model)
    for name in left_out:
        del state[name]
    file = convert(save(tmp_path, state, model.family.settings)).model
    config = file.config
    assert config.head == Head.MASKED_LM_NEXT_SENTENCE
    assert (config.head_activation, config.hidden_activation) == (Activation.RELU, Activation.GELU)
    assert config.head_norm_eps == np.float32(1e-12)
    latent = model.bert.embeddings.word_embeddings.weight.detach().numpy()
    np.testing.assert_array_equal(file.tensors["mlm.decoder.weight"].to_float32(), latent)
    assert np.abs(file.tensors["embeddings.word.weight"].to_float32() - latent).max() > 0.01
    assert file.tensors["next_sentence.weight"].shape == (2, 96)


def test_estimators_of_zeros_stay_floats(tmp_path: Path) -> None:
    """As they are before training: two values at most, but no slots for bits."""
    model = BiPft().model(seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".v_p." in name or ".q_p." in name:
                parameter.zero_()
    conversion = convert_model(model, tmp_path)
    assert compare(model, conversion, tmp_path / "m.bitm", 1e-4, n=5).of_runtime == 0


def test_products_need_not_be_stated(tmp_path: Path) -> None:
    model = BiPft(lora_rank=2).model(seed=4)
    del model.family.settings["improve_linear"]
    del model.family.settings["lora_rank"]
    conversion = convert_model(model, tmp_path)
    assert any("improve_linear" in note for note in conversion.notes)
    file = conversion.model
    lora = model.bert.encoder.layer[1].attention.output.lora_o.lora
    expected = (lora[1].weight @ lora[0].weight).detach()
    found = file.tensors["layers.1.attention_output.second.weight"].to_float32()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_the_command_line_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = BiPft()
    folder = save(tmp_path / "model", state_of(family.model(seed=5)), family.settings)
    assert main([str(folder), str(tmp_path / "m.bitm"), "--verify"]) == 0
    assert "verify: ok" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"half_binary": True}, ConfigError, "'half_binary': expected False, found True"),
        ({"input_bits": 2}, ConfigError, "'input_bits': expected 1, found 2"),
        ({"weight_bits": 32}, ConfigError, "'weight_bits': expected 1, found 32"),
        ({"input_quant_method": "bwn"}, ConfigError, "expected 'elastic', found 'bwn'"),
        ({"hidden_act": None}, MissingError, "'hidden_act' is needed.*--config"),
        ({"lora_rank": 2}, ShapeError, r"q_p.weight.*expected shape \(2, 96\), found \(1, 96\)"),
        ({"improve_linear": True}, MissingError, r"lora_q.lora.0.weight': is needed"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(
    changes: dict[str, Any], error: type[ConversionError], message: str, tmp_path: Path
) -> None:
    family = BiPft(Sizes(layers=1), head="cls")
    with pytest.raises(error, match=message):
        convert(save(tmp_path, state_of(family.model(seed=6)), {**family.settings, **changes}))


def test_products_against_the_configuration(tmp_path: Path) -> None:
    family = BiPft(Sizes(layers=1), lora_rank=2)
    family.settings["improve_linear"] = False
    with pytest.raises(UnknownTensorError, match="lora_q"):
        convert(save(tmp_path, state_of(family.model(seed=7)), family.settings))


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        (f"{SELF}.k_m.bias", None, MissingError, r"\*.k_m.bias': is needed"),
        (f"{SELF}.v_p.weight", torch.ones(2, 96), ShapeError, r"\(1, 96\), found \(2, 96\)"),
        (f"{SELF}.q.q_p.weight", torch.ones(1, 96), CheckpointError, "one such name, found 2"),
        ("bert.pooler.LayerNorm.bias", None, MissingError, "pooler.LayerNorm.bias': is needed"),
        (f"{SELF}.move_q.bias", torch.ones(96), UnknownTensorError, "move_q.*no part"),
    ],
)
def test_tensors_that_are_refused(
    name: str, value: Any, error: type[ConversionError], message: str, tmp_path: Path
) -> None:
    family = BiPft(Sizes(layers=1))
    state = state_of(family.model(seed=8))
    state.pop(name, None)
    if value is not None:
        state[name] = value
    with pytest.raises(error, match=message):
        convert(save(tmp_path, state, family.settings))
