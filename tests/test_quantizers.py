"""Models that define their own arithmetic: quantizers, ternary weights, attention's other forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bitm_formats
from bitm import Model
from bitm_formats import (
    DType,
    Layout,
    ModelFile,
    Quantizer,
    QuantizerKind,
    Scope,
    Tensor,
)
from spec_reference import Reference
from tiny_models import Rng, bit_matrix, config, encoder, float_matrix, masked_lm, vector

LINEARS = ("query", "key", "value", "attention_output", "intermediate", "output")


def sign(step: float = 1.0) -> Quantizer:
    return Quantizer(QuantizerKind.SIGN, Scope.STATIC, -1, 1, step)


def integers(lo: int, hi: int, step: float) -> Quantizer:
    return Quantizer(QuantizerKind.INT, Scope.STATIC, lo, hi, step)


def from_least(hi: int, step: float, scope: Scope) -> Quantizer:
    return Quantizer(QuantizerKind.INT_MIN, scope, 0, hi, step)


def symmetric(bits: int, scope: Scope, clip: tuple[float, float] | None = None) -> Quantizer:
    hi = 2 ** (bits - 1) - 1
    return Quantizer(QuantizerKind.DYN_SYM, scope, -hi - 1, hi, eps=1e-5, clip=clip)


def asymmetric(bits: int, scope: Scope) -> Quantizer:
    return Quantizer(QuantizerKind.DYN_ASYM, scope, 0, 2**bits - 1, eps=1e-8)


# The quantizer of linears' inputs, that of the input of `output` (which follows the activation),
# those of query, key and value, and that of probabilities.
Quantizers = tuple[Quantizer, Quantizer, "Quantizer | None", "Quantizer | None"]
BY_SEQUENCE, BY_TOKEN = Scope.SEQUENCE, Scope.TOKEN
FORMS: dict[str, Quantizers] = {
    "signs": (sign(0.7), integers(0, 1, 0.3), sign(0.4), integers(0, 1, 0.06)),
    "two bits": (
        integers(-2, 1, 0.5),
        from_least(3, 0.2, BY_SEQUENCE),
        integers(-2, 1, 0.4),
        from_least(3, 0.05, BY_SEQUENCE),
    ),
    "four bits": (
        integers(-8, 7, 0.2),
        from_least(15, 0.1, BY_TOKEN),
        integers(-8, 7, 0.2),
        from_least(15, 0.02, BY_TOKEN),
    ),
    "eight bits by sequence": (
        symmetric(8, BY_SEQUENCE, (-2.0, 2.5)),
        asymmetric(8, BY_SEQUENCE),
        symmetric(8, BY_SEQUENCE),
        asymmetric(8, BY_SEQUENCE),
    ),
    "eight bits by token": (
        symmetric(8, BY_TOKEN),
        asymmetric(8, BY_TOKEN),
        symmetric(8, BY_TOKEN),
        asymmetric(8, BY_TOKEN),
    ),
    "eight bits, float attention": (symmetric(8, BY_TOKEN), symmetric(8, BY_TOKEN), None, None),
    "by sequence, float attention": (
        symmetric(8, BY_SEQUENCE),
        asymmetric(8, BY_SEQUENCE),
        None,
        None,
    ),
    "twelve bits": (
        integers(-2048, 2047, 0.002),
        integers(0, 4095, 0.001),
        integers(-2048, 2047, 0.002),
        integers(0, 1023, 0.001),
    ),
    "probabilities in floats": (sign(), sign(), sign(0.3), None),
    "values in floats": (sign(), sign(), None, integers(0, 1, 0.06)),
}


def quantize(model: ModelFile, rng: Rng, forms: Quantizers, with_shift: bool = True) -> ModelFile:
    """Gives every linear of the layers quantizers, and shifts that are not dead."""
    of_linears, of_output, of_operands, of_probabilities = forms
    for n in range(model.config.n_layers):
        for name in LINEARS:
            place = f"layers.{n}.{name}"
            model.quantizers[place] = of_output if name == "output" else of_linears
            if with_shift:
                columns = model.tensors[f"{place}.weight"].shape[1]
                model.tensors[f"{place}.shift"] = vector(rng, columns)
        for operand in ("query", "key", "value"):
            if of_operands is not None:
                model.quantizers[f"layers.{n}.attention.{operand}"] = of_operands
        if of_probabilities is not None:
            model.quantizers[f"layers.{n}.attention.probabilities"] = of_probabilities
    return model


def ternary(rng: Rng, rows: int, columns: int) -> Tensor:
    scales = rng.normal(size=rows).astype(np.float32) / np.sqrt(columns)
    codes = rng.integers(-1, 2, (rows, columns)).astype(np.int8)
    return Tensor.from_codes(codes, scales=scales.astype(np.float32), scale_layout=Layout.ROW)


def make_ternary(model: ModelFile, rng: Rng) -> ModelFile:
    for name, tensor in model.tensors.items():
        if name.startswith("layers.") and tensor.dtype == DType.BIT1:
            rows, columns = tensor.shape
            model.tensors[name] = ternary(rng, rows, columns)
    return model


def wrong_logits(
    model: ModelFile,
    path: Path,
    n_texts: int = 30,
    tolerance: float = 1e-3,
    longest: int = 12,
    shortest: int = 1,
) -> float:
    """The share of sequences whose logits differ from the reference's.

    A value within rounding of a threshold falls to the other side now and then, and then everything
    after it differs: so few may be wrong, but not how much.
    """
    bitm_formats.write(path, model)
    reference, wrong = Reference(model), 0
    rng = np.random.default_rng(11)
    with Model(path, activations="float32") as runtime:
        for _ in range(n_texts):
            ids = rng.integers(0, model.config.vocab_size, rng.integers(shortest, longest + 1))
            expected = reference.logits(ids)
            found = runtime.logits([ids])[0]
            wrong += bool(np.abs(found - expected).max() > tolerance * expected.std())
    return wrong / n_texts


@pytest.mark.parametrize("weights", ["bits", "ternary"])
@pytest.mark.parametrize("form", FORMS)
def test_every_quantizer_follows_the_specification(form: str, weights: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(len(form))
    model = masked_lm(rng, config(n_layers=1))
    if weights == "ternary":
        make_ternary(model, rng)
    quantize(model, rng, FORMS[form])
    assert wrong_logits(model, tmp_path / "m.bitm") <= 0.1


def test_offsets_and_bases_meet(tmp_path: Path) -> None:
    """Weights with offsets times inputs with a base: all four products count."""
    rng = np.random.default_rng(1)
    model = masked_lm(rng, config(n_layers=1), offset_layout=Layout.ROW)
    assert wrong_logits(quantize(model, rng, FORMS["four bits"]), tmp_path / "m.bitm") <= 0.1


def test_float_matrices_take_quantized_inputs_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    model = masked_lm(rng, config(n_layers=1))
    for name in LINEARS:
        full = f"layers.0.{name}.weight"
        rows, columns = model.tensors[full].shape
        model.tensors[full] = float_matrix(rng, rows, columns, DType.F32)
    assert wrong_logits(quantize(model, rng, FORMS["four bits"]), tmp_path / "m.bitm") <= 0.1


def test_two_branches_with_quantizers_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    model = quantize(masked_lm(rng, config(n_layers=1)), rng, FORMS["eight bits by sequence"])
    for name in LINEARS:
        place = f"layers.0.{name}"
        rows, columns = model.tensors[f"{place}.weight"].shape
        model.tensors[f"{place}.second.weight"] = bit_matrix(rng, rows, columns)
        model.tensors[f"{place}.second.bias"] = vector(rng, rows)
        model.quantizers[f"{place}.second"] = symmetric(8, BY_SEQUENCE, (-1.0, 1.0))
    assert wrong_logits(model, tmp_path / "m.bitm") <= 0.1


def test_attention_without_softmax(tmp_path: Path) -> None:
    """BiBERT: a probability is 1 where the score is above 0, and nothing is normalized."""
    rng = np.random.default_rng(4)
    one = Quantizer(QuantizerKind.BOOL, Scope.STATIC, 0, 1)
    model = masked_lm(rng, config(n_layers=1, attention_normalizer=0))
    quantize(model, rng, (sign(), sign(), sign(), one), with_shift=False)
    assert wrong_logits(model, tmp_path / "m.bitm") <= 0.1


@pytest.mark.parametrize("head_size", [17, 70])
@pytest.mark.parametrize("probabilities", ["one bit", "four bits above the least"])
@pytest.mark.parametrize("signs", ["key", "value", "query", "query, key, value"])
def test_signs_meet_other_codes_in_attention(
    signs: str, probabilities: str, head_size: int, tmp_path: Path
) -> None:
    """Of keys and values of one head some are 0, which is no sign; sequences of several words."""
    rng = np.random.default_rng(12)
    c = config(n_layers=1, max_positions=100, head_size=head_size, score_scale=0.2)
    one_bit, above_least = integers(0, 1, 0.03), from_least(15, 0.01, BY_SEQUENCE)
    of_probabilities = one_bit if probabilities == "one bit" else above_least
    model = quantize(masked_lm(rng, c), rng, (sign(), sign(), None, of_probabilities))
    for first, operand in enumerate(("query", "key", "value")):
        place, zeros = f"layers.0.{operand}", slice(5 * first, 5 * first + 5)
        model.quantizers[f"layers.0.attention.{operand}"] = (
            sign(0.4) if operand in signs else integers(-8, 7, 0.2)
        )
        model.tensors[f"{place}.bias"].data[zeros] = 0
        scales = model.tensors[f"{place}.weight"].scales
        assert scales is not None
        scales[zeros] = 0
    assert wrong_logits(model, tmp_path / "m.bitm", longest=100) <= 0.1


@pytest.mark.parametrize("head_size", [16, 61, 64])
@pytest.mark.parametrize("scale", [0.125, 0.13])
@pytest.mark.parametrize("keys", ["any", "one is the query", "no signs"])
def test_long_sequences_of_signs(keys: str, scale: float, head_size: int, tmp_path: Path) -> None:
    """Their probabilities are looked up by distances, if keys are signs and none is the query."""
    rng = np.random.default_rng(14)
    c = config(n_layers=1, max_positions=300, head_size=head_size, score_scale=scale)
    model = quantize(masked_lm(rng, c), rng, (sign(0.7), sign(), sign(), integers(0, 1, 0.008)))
    if keys == "one is the query":
        for part in ("weight", "bias", "shift"):
            query = model.tensors[f"layers.0.query.{part}"]
            model.tensors[f"layers.0.key.{part}"] = query
    if keys == "no signs":
        model.quantizers["layers.0.attention.key"] = symmetric(2, BY_TOKEN)
    path = tmp_path / "m.bitm"
    assert wrong_logits(model, path, n_texts=10, shortest=120, longest=300) <= 0.1


def test_low_rank_and_value_terms(tmp_path: Path) -> None:
    """BiPFT's float estimators beside signs."""
    rng = np.random.default_rng(5)
    c = config(n_layers=1, score_rank=2, value_term=1)
    model = quantize(masked_lm(rng, c), rng, FORMS["signs"])
    for name in ("query_p", "query_m", "key_p", "key_m"):
        place = f"layers.0.low_rank.{name}"
        model.tensors[f"{place}.weight"] = float_matrix(rng, 2, c.hidden_size, DType.F32)
        model.tensors[f"{place}.bias"] = vector(rng, 2)
    model.tensors["layers.0.value_term.weight"] = float_matrix(rng, 1, c.hidden_size, DType.F16)
    model.tensors["layers.0.value_term.bias"] = vector(rng, 1)
    assert wrong_logits(model, tmp_path / "m.bitm") <= 0.1


def test_rms_norms_before_linears(tmp_path: Path) -> None:
    """BitNet with use_rms_norm: ternary weights, 8 bits by token."""
    rng = np.random.default_rng(6)
    model = make_ternary(masked_lm(rng, config(n_layers=1, rms_norm_eps=1e-5)), rng)
    for name in LINEARS:
        columns = model.tensors[f"layers.0.{name}.weight"].shape[1]
        model.tensors[f"layers.0.{name}.rms.gain"] = vector(rng, columns)
    forms = (symmetric(8, BY_TOKEN), symmetric(8, BY_TOKEN), None, None)
    assert wrong_logits(quantize(model, rng, forms, False), tmp_path / "m.bitm") <= 0.1


def with_head(rng: Rng, **changes: object) -> ModelFile:
    c = config(head_activation=0, head_norm_eps=0.0, **changes)
    model = ModelFile(c, encoder(rng, c), {}, None, {})
    if c.pooler:
        model.tensors["pooler.weight"] = bit_matrix(rng, c.hidden_size, c.hidden_size)
        model.tensors["pooler.bias"] = vector(rng, c.hidden_size)
    if c.pooler == 2:
        model.tensors["pooler.norm.gain"] = vector(rng, c.hidden_size)
        model.tensors["pooler.norm.bias"] = vector(rng, c.hidden_size)
    model.tensors["classifier.weight"] = float_matrix(rng, c.n_labels, c.hidden_size, DType.F32)
    model.tensors["classifier.bias"] = vector(rng, c.n_labels)
    return model


HEADS: dict[str, Callable[[Rng], ModelFile]] = {
    "classifier": lambda rng: with_head(rng, head=3, pooler=1, n_labels=3, problem=2),
    "one logit": lambda rng: with_head(rng, head=3, pooler=1, n_labels=1, problem=4),
    "pooler with norm and skip": lambda rng: with_head(
        rng, head=3, pooler=2, pooler_norm_eps=1e-3, n_labels=2, problem=2
    ),
    "token classifier": lambda rng: with_head(rng, head=4, n_labels=5, problem=2),
    "question answering": lambda rng: with_head(rng, head=5, n_labels=2),
}


@pytest.mark.parametrize("head", HEADS)
def test_every_head(head: str, tmp_path: Path) -> None:
    model = HEADS[head](np.random.default_rng(7))
    bitm_formats.write(tmp_path / "m.bitm", model)
    reference = Reference(model)
    texts = [np.arange(5, 5 + n) for n in (1, 30, 7, 12, 3)]
    ids, mask = np.zeros((5, 30), int), np.zeros((5, 30), int)
    for row, ones, text in zip(ids, mask, texts):
        row[: len(text)], ones[: len(text)] = text, 1
    with Model(tmp_path / "m.bitm", activations="float32") as runtime:
        batch = runtime.logits(ids, mask)
        for text, logits in zip(texts, batch):
            alone = runtime.logits([text])[0]
            np.testing.assert_allclose(alone, reference.logits(text), atol=2e-4)
            padded = logits if batch.ndim == 2 else logits[: len(text)]
            np.testing.assert_array_equal(alone, padded)


@pytest.mark.parametrize("form", FORMS)
def test_quantized_models_do_not_see_batch_padding_or_threads(form: str, tmp_path: Path) -> None:
    """Nor which positions are asked for."""
    rng = np.random.default_rng(8)
    path = tmp_path / "m.bitm"
    bitm_formats.write(path, quantize(masked_lm(rng), rng, FORMS[form]))
    rows = [rng.integers(0, 101, n) for n in (3, 40, 1, 17, 22, 9, 31)]
    ids, mask = np.zeros((7, 40), int), np.zeros((7, 40), int)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    with Model(path, threads=1) as one, Model(path, threads=3) as three:
        batch = three.logits(ids, mask)
        for row, logits in zip(rows, batch):
            np.testing.assert_array_equal(one.logits([row])[0], logits[: len(row)])
        ends = np.array([[len(row) - 1, 0] for row in rows])
        expected = np.take_along_axis(batch, ends[:, :, None], axis=1)
        np.testing.assert_array_equal(three.logits(ids, mask, positions=ends), expected)


def test_ternary_weights_without_quantizers(tmp_path: Path) -> None:
    """Weights only: the activation modes are the runtime's."""
    rng = np.random.default_rng(9)
    model = make_ternary(masked_lm(rng), rng)
    bitm_formats.write(tmp_path / "m.bitm", model)
    ids = np.arange(3, 33)
    expected = Reference(model).logits(ids)
    for mode, tolerance in (("float32", 2e-5), ("int16", 2e-3), ("int11", 0.1), ("int8", 0.5)):
        with Model(tmp_path / "m.bitm", activations=mode) as runtime:
            found = runtime.logits([ids])[0]
        assert np.abs(found - expected).max() < tolerance * expected.std(), mode


def test_int8_tables(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    model = masked_lm(rng)
    for name in ("word", "position", "token_type"):
        rows, columns = model.tensors[f"embeddings.{name}.weight"].shape
        codes = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
        scales = rng.normal(size=rows).astype(np.float32) / 100
        model.tensors[f"embeddings.{name}.weight"] = Tensor.from_int8(codes, scales, Layout.ROW)
    bitm_formats.write(tmp_path / "m.bitm", model)
    ids = np.arange(3, 33)
    expected = Reference(model).logits(ids)
    with Model(tmp_path / "m.bitm", activations="float32") as runtime:
        found = runtime.logits([ids])[0]
    assert np.abs(found - expected).max() < 2e-5 * expected.std()


def test_a_sign_model_runs_no_float_product_in_its_layers(tmp_path: Path) -> None:
    rng = np.random.default_rng(12)
    c = config(head=0, head_activation=0, head_norm_eps=0.0)
    model = quantize(ModelFile(c, encoder(rng, c), {}, None, {}), rng, FORMS["signs"])
    bitm_formats.write(tmp_path / "m.bitm", model)
    with Model(tmp_path / "m.bitm") as runtime:
        if runtime.info["device"] != "cpu":  # device_twin runs this test on a GPU
            pytest.skip("expected: a GPU has no kernels to choose from")
        products = runtime.info["kernels"]
    assert {op for op in products if op.startswith("gemm_")} == {"gemm_w1sign", "gemm_w1planes"}
