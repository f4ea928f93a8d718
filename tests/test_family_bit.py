"""BiT: files against a PyTorch model written from the formulas, and what the recipe refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitm_formats
from bitm_converter.cli import main
from bitm_converter.errors import (
    ConfigError,
    ConversionError,
    MissingError,
    ShapeError,
    UnknownTensorError,
)
from bitm_formats import Activation, DType, Head, Pooler, Problem, QuantizerKind
from families.bit import Bit
from families.comparison import compare, convert, convert_model
from families.low_bit import Sizes, save, state_of, torch

TOLERANCES = {1: 1e-4, 2: 1e-3, 4: 1e-3, 8: 5e-3, 32: 1e-4}
SELF = "bert.encoder.layer.0.attention.self"


@pytest.mark.parametrize("bits", TOLERANCES)
def test_logits_of_every_width(bits: int, tmp_path: Path) -> None:
    model = Bit(bits).model(seed=bits)
    conversion = convert_model(model, tmp_path)
    off = compare(model, conversion, tmp_path / "m.bitm", TOLERANCES[bits])
    assert off.of_runtime <= 0.1
    assert off.of_numpy <= 0.1


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {"weight_layerwise": False},
        {"embed_layerwise": True},
        {"sym_quant_ffn_attn": True},
        {"not_quantize_attention": True},
        {"hidden_act": "gelu"},
        {"weight_bits": 32},
        {"weight_layerwise": 0, "embed_layerwise": 1},
    ],
    ids=str,
)
def test_the_configuration_changes_the_arithmetic(
    bits: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = Bit(bits, **changes).model(seed=bits)
    conversion = convert_model(model, tmp_path)
    assert compare(model, conversion, tmp_path / "m.bitm", 1e-3).of_runtime <= 0.1


@pytest.mark.parametrize(
    ("head", "n_labels", "expected", "problem"),
    [
        ("classifier", 2, Head.CLASSIFIER, Problem.ONE_LABEL),
        ("classifier", 1, Head.CLASSIFIER, Problem.REGRESSION),
        ("qa_outputs", 2, Head.QUESTION_ANSWERING, Problem.NONE),
    ],
)
def test_heads(head: str, n_labels: int, expected: Head, problem: Problem, tmp_path: Path) -> None:
    model = Bit(1, head=head, n_labels=n_labels).model(seed=7)
    conversion = convert_model(model, tmp_path)
    config = conversion.model.config
    assert (config.head, config.problem, config.pooler) == (expected, problem, Pooler.TANH)
    assert compare(model, conversion, tmp_path / "m.bitm", 1e-4).of_runtime <= 0.1


def test_what_is_in_the_file_of_a_one_bit_model(tmp_path: Path) -> None:
    model = Bit(1).model(seed=1)
    file = convert_model(model, tmp_path).model
    assert file.metadata["source.family"] == "bit"
    assert file.vocabulary is None
    config = file.config
    assert config.layer_norm_eps == np.float32(1e-12)
    assert config.hidden_activation == Activation.RELU

    kinds = {place: (q.kind, q.lo, q.hi) for place, q in file.quantizers.items()}
    signs, bits = (QuantizerKind.SIGN, -1, 1), (QuantizerKind.INT, 0, 1)
    unsigned = {
        f"layers.{n}.{place}" for n in range(2) for place in ("output", "attention.probabilities")
    }
    assert kinds == {place: bits if place in unsigned else signs for place in kinds}
    assert len(kinds) == 2 * (6 + 4) + 1

    # A weight that equals the mean is a third value; all other matrices are single bits.
    stored = {name: tensor.dtype for name, tensor in file.tensors.items() if len(tensor.shape) == 2}
    ternary = {name for name, dtype in stored.items() if dtype == DType.TERN}
    assert ternary == {"embeddings.word.weight", "layers.0.intermediate.weight"}
    floats = {name for name, dtype in stored.items() if dtype == DType.F32}
    assert floats == {
        "embeddings.position.weight",
        "embeddings.token_type.weight",
        "classifier.weight",
    }
    weight = model.bert.encoder.layer[1].output.dense.weight.detach()
    scales = file.tensors["layers.1.output.weight"].scales
    assert scales is not None
    np.testing.assert_allclose(scales, [weight.abs().mean()], rtol=1e-6)
    words = model.bert.embeddings.word_embeddings.weight.detach()
    scales = file.tensors["embeddings.word.weight"].scales
    assert scales is not None
    np.testing.assert_allclose(scales, words.abs().mean(1), rtol=1e-6)


@pytest.mark.parametrize("container", ["legacy", "prefixed", "wrapped", "legacy wrapped prefixed"])
def test_the_container_does_not_matter(container: str, tmp_path: Path) -> None:
    model = Bit(2, Sizes(layers=1)).model(seed=2)
    expected = convert_model(model, tmp_path / "zip").model
    found = convert_model(model, tmp_path / "other", container).model
    assert to_bytes(found) == to_bytes(expected)


def to_bytes(model: bitm_formats.ModelFile) -> bytes:
    """The file without its source."""
    return bitm_formats.to_bytes(replace(model, metadata={}))


def test_a_shift_of_floats_becomes_part_of_the_bias(tmp_path: Path) -> None:
    model = Bit(32).model(seed=3)
    file = convert_model(model, tmp_path).model
    assert not file.quantizers
    assert not [name for name in file.tensors if name.endswith(".shift")]
    linear = model.bert.encoder.layer[0].attention.output.dense
    latent = linear.weight.detach().double()
    weight = torch.sign(latent - latent.mean()) * latent.abs().mean()
    expected = linear.bias.detach().double() + weight @ linear.move.bias.detach().double()
    found = file.tensors["layers.0.attention_output.bias"].data
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_dead_shifts_are_left_out(tmp_path: Path) -> None:
    model = Bit(1).model(seed=4)
    conversion = convert_model(model, tmp_path / "a")
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.self.move_q.bias.add_(5.0)
    assert to_bytes(convert_model(model, tmp_path / "b").model) == to_bytes(conversion.model)
    assert any("6 tensors *.attention.self.move_" in note for note in conversion.notes)


@pytest.mark.parametrize(
    ("step", "expected"), [(0.25, 0.25), (1e-6, 1e-5), (-2.0, 1e-5), (0.0, 1e-5)]
)
def test_steps_have_a_least_value(step: float, expected: float, tmp_path: Path) -> None:
    state = state_of(Bit(4).model(seed=5))
    state[f"{SELF}.clip_value"] = torch.tensor(step)
    file = convert(save(tmp_path, state, Bit(4).settings)).model
    assert file.quantizers["layers.0.attention.value"].step == np.float32(expected)


def test_a_step_of_exactly_1_is_pointed_out(tmp_path: Path) -> None:
    state, settings = state_of(Bit(1).model(seed=6)), Bit(1).settings
    assert not any("exactly 1.0" in note for note in convert(save(tmp_path, state, settings)).notes)
    state[f"{SELF}.key.input_clip_val"] = torch.tensor([1.0])
    notes = convert(save(tmp_path, state, settings)).notes
    assert any("1 learned steps are exactly 1.0" in n and f"{SELF}.key" in n for n in notes)


def test_dynamic_statistics_are_pointed_out(tmp_path: Path) -> None:
    def has_note(bits: int) -> bool:
        notes = convert_model(Bit(bits).model(seed=8), tmp_path / str(bits)).notes
        return any("one sequence at a time" in note for note in notes)

    assert has_note(2)
    assert not has_note(1)


def test_a_vocabulary_is_given_apart(tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nparis\n")
    model = Bit(1, Sizes(layers=1)).model(seed=9)
    folder = save(tmp_path / "model", state_of(model), model.family.settings)
    assert convert(folder, vocab=vocab).model.vocabulary is not None
    assert any("no vocabulary found" in n for n in convert(folder, use_vocab=True).notes)


def test_the_command_line_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Bit(1).model(seed=10)
    folder = save(tmp_path / "model", state_of(model), model.family.settings)
    assert main([str(folder), str(tmp_path / "m.bitm"), "--verify"]) == 0
    assert "verify: ok" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input_bits": None}, MissingError, "'input_bits' is needed.*--config"),
        ({"weight_bits": None}, MissingError, "'weight_bits' is needed.*--config"),
        ({"hidden_act": None}, MissingError, "'hidden_act' is needed.*--config"),
        ({"input_bits": 16}, ConfigError, "'input_bits': expected 1, 2, .* or 32, found 16"),
        ({"weight_bits": 2}, ConfigError, "'weight_bits': expected 1 or 32, found 2"),
        ({"weight_quant_method": "uniform"}, ConfigError, "expected 'bwn', found 'uniform'"),
        ({"input_quant_method": "uniform"}, ConfigError, "expected 'elastic', found 'uniform'"),
        ({"input_quant_method": "bwn"}, ConfigError, "expected 'elastic', found 'bwn'"),
        ({"input_layerwise": False}, ConfigError, "'input_layerwise': expected True, found False"),
        ({"sym_quant_qkvo": False}, ConfigError, "'sym_quant_qkvo': expected True, found False"),
        ({"sym_quant_ffn_attn": "no"}, ConfigError, "expected true or false, found 'no'"),
    ],
    ids=str,
)
def test_configurations_that_are_refused(
    changes: dict[str, Any], error: type[ConversionError], message: str, tmp_path: Path
) -> None:
    model = Bit(1, Sizes(layers=1)).model(seed=11)
    with pytest.raises(error, match=message):
        convert(save(tmp_path, state_of(model), {**model.family.settings, **changes}))


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        (f"{SELF}.clip_attn", None, MissingError, "clip_attn': is needed"),
        (f"{SELF}.query.move.bias", None, MissingError, r"query.move.bias': is needed"),
        (f"{SELF}.query.bias", None, MissingError, r"query.bias': is needed"),
        (f"{SELF}.clip_attn", torch.ones(2), ShapeError, r"one step, found shape \(2,\)"),
        (f"{SELF}.query.move.bias", torch.ones(95), ShapeError, r"\(96,\), found \(95,\)"),
        (f"{SELF}.query.prune", torch.ones(2), UnknownTensorError, "query.prune.*no part"),
    ],
)
def test_tensors_that_are_refused(
    name: str, value: Any, error: type[ConversionError], message: str, tmp_path: Path
) -> None:
    model = Bit(1, Sizes(layers=1)).model(seed=12)
    state = state_of(model)
    state.pop(name, None)
    if value is not None:
        state[name] = value
    with pytest.raises(error, match=message):
        convert(save(tmp_path, state, model.family.settings))
