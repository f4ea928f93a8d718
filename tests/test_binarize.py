"""Naive binarization and coarser tables: which matrices change, into what, and what is said of it.

The formulas are written out once more here; PyTorch runs a model with the matrices that they give.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import bitm_formats
from bert_checkpoints import HIDDEN, WORDS, masked_lm_state, one_bit, random_state, save
from bitm_converter import cli
from bitm_converter.checkpoint import open_checkpoint
from bitm_converter.errors import OptionError
from bitm_converter.naive import Binarization
from bitm_converter.packing import Int8, Loss
from bitm_converter.recipes import Conversion, Options, choose
from bitm_formats import DType, Layout
from conftest import ROOT

Floats = npt.NDArray[Any]
State = dict[str, Floats]
Capture = pytest.CaptureFixture[str]

WORD = "bert.embeddings.word_embeddings.weight"
TYPE = "bert.embeddings.token_type_embeddings.weight"
POSITION = "bert.embeddings.position_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
TRANSFORM = "cls.predictions.transform.dense.weight"
TABLE_SLOTS = {
    WORD: "embeddings.word.weight",
    TYPE: "embeddings.token_type.weight",
    DECODER: "mlm.decoder.weight",
    POSITION: "embeddings.position.weight",
}
SLOTS = {
    **TABLE_SLOTS,
    TRANSFORM: "mlm.transform.weight",
    "cls.seq_relationship.weight": "next_sentence.weight",
    "bert.pooler.dense.weight": "pooler.weight",
    "classifier.weight": "classifier.weight",
}
N_LAYERS, N_HEADS, SIZE = 2, 3, 48
for _n in range(N_LAYERS):
    for _part in ("self.query", "self.key", "self.value", "output.dense"):
        _slot = _part.replace("output.dense", "attention_output").removeprefix("self.")
        SLOTS[f"bert.encoder.layer.{_n}.attention.{_part}.weight"] = f"layers.{_n}.{_slot}.weight"
    for _part in ("intermediate", "output"):
        SLOTS[f"bert.encoder.layer.{_n}.{_part}.dense.weight"] = f"layers.{_n}.{_part}.weight"


def _names(*parts: str) -> set[str]:
    return {name for name in SLOTS if any(part in name for part in parts)}


ATTENTION = _names(".attention.")
FEED_FORWARD = _names(".intermediate.dense", "0.output.dense", "1.output.dense")
HEAD = {TRANSFORM, DECODER, "cls.seq_relationship.weight", "bert.pooler.dense.weight"}
HEAD |= {"classifier.weight"}
COMPONENTS = {
    "layers": ATTENTION | FEED_FORWARD,
    "layers-except-attention": FEED_FORWARD,
    "layers-except-ffn": ATTENTION,
    "embeddings": {WORD, TYPE},
    "head": HEAD,
    "all": ATTENTION | FEED_FORWARD | {WORD, TYPE} | HEAD,
}


# Models


def make(class_name: str, **settings: Any) -> Any:
    """A random float BERT with zeros and -0.0 among its weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        **{
            "vocab_size": 211,
            "hidden_size": SIZE,
            "num_hidden_layers": N_LAYERS,
            "num_attention_heads": N_HEADS,
            "intermediate_size": 100,
            "max_position_embeddings": 40,
            "initializer_range": 0.1,
            **settings,
        }
    )
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
            elif "LayerNorm" not in name:
                parameter.view(-1)[3:40:4] = 0.0
                parameter.view(-1)[5:40:4] = -0.0
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """Gives a model by its class, and the folder where it is saved; each is made once."""
    made: dict[str, tuple[Any, Path]] = {}

    def get(class_name: str) -> tuple[Any, Path]:
        if class_name not in made:
            folder = tmp_path_factory.mktemp(class_name)
            model = make(class_name)
            model.save_pretrained(folder)
            made[class_name] = model, folder
        return made[class_name]

    return get


Models = Callable[[str], tuple[Any, Path]]


def state_of(model: Any) -> State:
    return {name: values.detach().numpy() for name, values in model.state_dict().items()}


def convert(path: Path, binarize: Binarization | None = None, **options: Any) -> Conversion:
    checkpoint = open_checkpoint(path)
    chosen = Options(use_vocab=False, binarize=binarize, **options)
    return choose(checkpoint).convert(checkpoint, chosen)


def batch(model: Any) -> tuple[npt.NDArray[np.int64], ...]:
    """Ids, mask and types of three sequences, two of them padded."""
    rng = np.random.default_rng(1)
    mask = (np.arange(20) < np.array([[20], [1], [9]])).astype(np.int64)
    ids = rng.integers(model.config.vocab_size, size=mask.shape)
    return ids, mask, rng.integers(model.config.type_vocab_size, size=mask.shape)


def logits_in_torch(model: Any, instead: State) -> Floats:
    """The logits, in float64, of a model some of whose matrices are replaced."""
    import torch

    changed = copy.deepcopy(model).double()
    if hasattr(changed, "cls"):  # the decoder may differ from the embeddings
        decoder = changed.cls.predictions.decoder
        decoder.weight = torch.nn.Parameter(decoder.weight.detach().clone())
    with torch.no_grad():
        parameters = dict(changed.named_parameters())
        for name, values in instead.items():
            parameters[name].copy_(torch.tensor(values))
        ids, mask, types = map(torch.tensor, batch(model))
        out = changed(input_ids=ids, attention_mask=mask, token_type_ids=types)
    logits: Floats = out.get("prediction_logits", out.get("logits")).numpy()
    return logits


def assert_runtime_agrees(conversion: Conversion, model: Any, instead: State, path: Path) -> None:
    """The file's logits are those of PyTorch with the same dense matrices, and of the reference.

    Signs without scales make scores of tens and logits of ten, which float32 rounds the more.
    """
    bitm = pytest.importorskip("bitm")
    bitm_formats.write(path, conversion.model)
    ids, mask, types = batch(model)
    with bitm.Model(path, activations="float32") as runtime:
        found = runtime.logits(ids, mask, types)
    expected = logits_in_torch(model, instead)
    is_real = mask != 0 if found.ndim == 3 else ...
    atol = 1e-4 * max(1, expected[is_real].std())
    np.testing.assert_allclose(found[is_real], expected[is_real], atol=atol)
    reference = conversion.evaluate(ids, mask, types).logits
    assert reference is not None
    is_rounded = any(row.rounding > 0 for row in conversion.rows)
    atol = 2e-3 if is_rounded else atol
    np.testing.assert_allclose(reference[is_real], expected[is_real], atol=atol)


# The formulas


def signs(weights: Floats) -> Floats:
    return np.where(weights < 0, -1, 1).astype(np.float32)


def mean_magnitudes(weights: Floats, axis: int | None) -> Floats:
    """Float32, in a shape that broadcasts."""
    magnitudes = np.abs(weights.astype(np.float64))
    mean: Floats = magnitudes.mean(axis=axis, keepdims=True).astype(np.float32)
    return mean


def dense(weights: Floats, scheme: str, is_table: bool = False) -> Floats:
    """What a scheme makes of a matrix, xnor with row scales, of a table with column scales."""
    if scheme == "sign":
        return signs(weights)
    if scheme == "zero-one":
        return (signs(weights) > 0).astype(np.float32)
    return signs(weights) * mean_magnitudes(weights, 0 if is_table else 1)


# What becomes bits


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("scheme", ["sign", "zero-one", "xnor"])
@pytest.mark.parametrize(
    "class_name", ["BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification"]
)
def test_a_component_becomes_bits_and_runs_as_such(
    class_name: str, scheme: Any, component: str, models: Models, tmp_path: Path
) -> None:
    model, folder = models(class_name)
    state = state_of(model)
    wish = Binarization(scheme, components=(component,))
    conversion = convert(folder, wish, embeddings="fp32", matrices="fp32")
    names = [name for name in COMPONENTS[component] if name in state]
    tables = {WORD, TYPE, DECODER} if WORD in names else set()  # the decoder is the words' table
    instead = {name: dense(state[name], scheme, name in tables) for name in names}
    tensors = conversion.model.tensors
    is_tied = (WORD in instead) == (DECODER in instead)
    stored = {SLOTS[name] for name in instead if name != DECODER or not is_tied}
    assert {slot for slot, tensor in tensors.items() if tensor.dtype == DType.BIT1} == stored
    for name, matrix in instead.items():
        if SLOTS[name] in stored:
            assert np.array_equal(tensors[SLOTS[name]].to_float32(), matrix), name
    assert tensors["embeddings.position.weight"].dtype == DType.F32
    assert all(tensor.dtype == DType.F32 for tensor in tensors.values() if len(tensor.shape) == 1)
    assert_runtime_agrees(conversion, model, instead, tmp_path / "model.bitm")


def test_components_add_up(models: Models) -> None:
    _, folder = models("BertForMaskedLM")
    wish = Binarization("sign", components=("layers-except-ffn", "embeddings"))
    tensors = convert(folder, wish).model.tensors
    bits = {slot for slot, tensor in tensors.items() if tensor.dtype == DType.BIT1}
    assert bits == {SLOTS[name] for name in {*ATTENTION, WORD, TYPE}}


def test_zeros_are_positive() -> None:
    weights = np.array([[0.0, -0.0, -1e-45, 2.0]], np.float32)
    codes = Binarization("sign").binarize("layers.0.query.weight", weights, 1)
    assert codes.codes.tolist() == [[1, 1, -1, 1]]


QUERY, OUTPUT = (
    "bert.encoder.layer.1.attention.self.query.weight",
    "bert.encoder.layer.1.output.dense.weight",
)


@pytest.mark.parametrize(
    ("scales", "of_query", "of_output"),
    [
        ("tensor", Layout.TENSOR, Layout.TENSOR),
        ("row", Layout.ROW, Layout.ROW),
        ("head", Layout.ROW_GROUP, Layout.TENSOR),
    ],
)
def test_scales_of_xnor(scales: Any, of_query: Layout, of_output: Layout, models: Models) -> None:
    model, folder = models("BertForMaskedLM")
    state = state_of(model)
    tensors = convert(folder, Binarization("xnor", scales)).model.tensors
    for name, layout in ((QUERY, of_query), (OUTPUT, of_output)):
        tensor = tensors[SLOTS[name]]
        groups = {Layout.TENSOR: 1, Layout.ROW: SIZE, Layout.ROW_GROUP: N_HEADS}[layout]
        expected = mean_magnitudes(state[name].reshape(groups, -1), 1)[:, 0]
        assert (tensor.dtype, tensor.scale_layout) == (DType.BIT1, layout)
        assert tensor.scales is not None
        assert np.array_equal(tensor.scales, expected)
        spread = np.repeat(expected, SIZE // groups)[:, None]
        assert np.array_equal(tensor.to_float32(), signs(state[name]) * spread)


@pytest.mark.parametrize(
    ("n_heads", "layout"), [(1, Layout.TENSOR), (3, Layout.ROW_GROUP), (12, Layout.ROW)]
)
def test_scales_of_heads_with_one_row_or_all(n_heads: int, layout: Layout) -> None:
    weights = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    codes = Binarization("xnor", "head").binarize("layers.7.value.weight", weights, n_heads)
    assert (codes.layout, codes.scales.size) == (layout, n_heads)


@pytest.mark.parametrize(("scheme", "offset"), [("sign", None), ("zero-one", 0.5)])
def test_fixed_scales(scheme: Any, offset: float | None, models: Models) -> None:
    _, folder = models("BertForMaskedLM")
    tensor = convert(folder, Binarization(scheme)).model.tensors[SLOTS[QUERY]]
    assert tensor.scales is not None
    assert tensor.scales.tolist() == [1 - (offset or 0)]
    assert (None if tensor.offsets is None else tensor.offsets.tolist()) == (offset and [offset])


AXES = {Layout.ROW: 1, Layout.COLUMN: 0, Layout.TENSOR: None}


@pytest.mark.parametrize("layout", AXES)
def test_scales_of_binarized_tables(layout: Layout, models: Models, tmp_path: Path) -> None:
    model, folder = models("BertForMaskedLM")
    state = state_of(model)
    wish = Binarization("xnor", "tensor", ("embeddings", "head"), layout)
    conversion = convert(folder, wish, embeddings="fp32")
    tensors = conversion.model.tensors
    instead = {
        name: signs(state[name]) * mean_magnitudes(state[name], AXES[layout])
        for name in (WORD, TYPE)
    }
    for name, matrix in instead.items():
        assert tensors[SLOTS[name]].scale_layout == layout
        assert np.array_equal(tensors[SLOTS[name]].to_float32(), matrix)
    instead[DECODER] = instead[WORD]
    instead[TRANSFORM] = signs(state[TRANSFORM]) * mean_magnitudes(state[TRANSFORM], None)
    assert_runtime_agrees(conversion, model, instead, tmp_path / "model.bitm")


# The decoder that is the word embeddings


@pytest.mark.parametrize(
    ("components", "word", "decoder", "says"),
    [
        (("layers",), DType.F16, None, None),
        (("embeddings",), DType.BIT1, DType.F32, "the word embeddings are binarized, the decoder"),
        (("head",), DType.F32, DType.BIT1, "the decoder are binarized, the word embeddings"),
        (("embeddings", "head"), DType.BIT1, None, None),
        (("all",), DType.BIT1, None, None),
    ],
)
def test_a_tied_decoder_is_split_only_where_it_must(
    components: tuple[str, ...],
    word: DType,
    decoder: DType | None,
    says: str | None,
    models: Models,
) -> None:
    model, folder = models("BertForMaskedLM")
    conversion = convert(folder, Binarization("xnor", components=components))
    tensors = conversion.model.tensors
    assert tensors["embeddings.word.weight"].dtype == word
    split = [note for note in conversion.notes if "so there are two now" in note]
    row = next(row for row in conversion.rows if row.slot == "mlm.decoder.weight")
    if decoder is None:
        assert "mlm.decoder.weight" not in tensors
        assert (row.stored, split) == ("tied", [])
    else:
        assert tensors["mlm.decoder.weight"].dtype == decoder
        assert says is not None
        assert says in split[0]
    if decoder == DType.F32:
        latent = tensors["mlm.decoder.weight"].to_float32()
        assert np.array_equal(latent, state_of(model)[WORD])


# Coarser tables


def to_int8(weights: Floats) -> tuple[Floats, Floats]:
    scales = np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)
    return np.rint(weights / np.where(scales > 0, scales, 1)), scales


def test_int8_rows() -> None:
    weights = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    weights[3] = 0
    weights[4] = -0.0
    weights[5] = 2e-43  # whose scale is denormal, hence itself rounded
    packed = Int8.nearest(weights)
    rows = [n for n in range(40) if n not in (3, 4, 5)]
    codes, scales = to_int8(weights[rows])
    assert np.array_equal(packed.codes[rows], codes)
    assert np.array_equal(packed.scales[rows], scales[:, 0])
    assert np.abs(packed.codes).max() == 127
    assert not packed.codes[3:5].any()
    tensor = packed.pack().tensor
    assert (tensor.dtype, tensor.scale_layout) == (DType.I8, Layout.ROW)
    assert np.array_equal(tensor.to_float32(), packed.dense())
    assert np.abs(packed.dense() - weights)[rows].max() <= scales.max() / 2 * 1.001


def words_instead(weights: Floats, form: str, layout: Layout) -> Floats:
    if form == "bit1":
        return signs(weights) * mean_magnitudes(weights, AXES[layout])
    codes, scales = to_int8(weights)
    return (codes * scales).astype(np.float32)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(
    ("form", "layout"),
    [("int8", Layout.ROW), *(("bit1", layout) for layout in AXES)],
)
def test_tables_of_bytes_and_bits(
    form: Any, layout: Layout, is_tied: bool, models: Models, tmp_path: Path
) -> None:
    model, folder = models("BertForMaskedLM")
    if not is_tied:
        model = make("BertForMaskedLM", tie_word_embeddings=False)
        model.cls.predictions.bias = model.cls.predictions.decoder.bias
        folder = tmp_path / "untied"
        model.save_pretrained(folder)
    state = state_of(model)
    conversion = convert(folder, embeddings=form, table_layout=layout)
    tensors = conversion.model.tensors
    assert ("mlm.decoder.weight" in tensors) == (not is_tied)
    instead = {WORD: words_instead(state[WORD], form, layout)}
    instead[DECODER] = words_instead(state[DECODER], form, layout)
    for name in (WORD,) if is_tied else (WORD, DECODER):
        tensor = tensors[SLOTS[name]]
        dtype = DType.I8 if form == "int8" else DType.BIT1
        assert (tensor.dtype, tensor.scale_layout) == (dtype, layout)
        assert np.array_equal(tensor.to_float32(), instead[name])
    for name in (POSITION, TYPE):  # one step finer
        tensor = tensors[SLOTS[name]]
        assert tensor.dtype == (DType.F16 if form == "int8" else DType.I8)
        instead[name] = tensor.to_float32()
        np.testing.assert_allclose(instead[name], state[name], atol=2e-3)
    assert tensors["mlm.transform.weight"].dtype == DType.F32  # as the encoder is float
    assert_runtime_agrees(conversion, model, instead, tmp_path / "model.bitm")


@pytest.mark.parametrize("form", ["int8", "bit1"])
def test_two_valued_tables_keep_their_values(form: Any, tmp_path: Path) -> None:
    state = masked_lm_state()
    low, high = np.float32(-0.25), np.float32(0.75)
    state[WORD] = np.where(state[WORD] < 0, low, high)
    conversion = convert(save(tmp_path, state), embeddings=form)
    assert np.array_equal(
        conversion.model.tensors["embeddings.word.weight"].to_float32(), state[WORD]
    )
    assert conversion.alternatives == []
    assert "source.embeddings" not in conversion.model.metadata


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, DType.F16),
        ({"embeddings": "fp32"}, DType.F32),
        ({"embeddings": "int8"}, DType.I8),
        ({"embeddings": "bit1"}, DType.I8),
        ({"embeddings": "bit1", "matrices": "fp16"}, DType.F16),
        ({"matrices": "int8"}, DType.I8),
    ],
)
def test_other_matrices_beside_a_1_bit_encoder(
    options: dict[str, Any], dtype: DType, tmp_path: Path
) -> None:
    folder = save(tmp_path, one_bit(masked_lm_state()))
    tensors = convert(folder, **options).model.tensors
    assert tensors["mlm.transform.weight"].dtype == dtype
    assert tensors["layers.0.query.weight"].dtype == DType.BIT1


# What is said of it


def norm(matrix: Floats) -> float:
    return float(np.sqrt((matrix.astype(np.float64) ** 2).sum()))


def test_losses(models: Models) -> None:
    model, folder = models("BertForMaskedLM")
    state = state_of(model)
    conversion = convert(folder, Binarization("xnor", components=("all",)))
    rows = {row.slot: row for row in conversion.rows}
    for name in (*COMPONENTS["layers"], WORD, TRANSFORM):
        error = dense(state[name], "xnor", is_table=name == WORD) - state[name]
        loss = rows[SLOTS[name]].loss
        assert loss is not None
        assert loss.relative == pytest.approx(norm(error) / norm(state[name]), rel=1e-5)
        assert loss.greatest == np.abs(error).max()
        assert rows[SLOTS[name]].rounding == 0
    assert rows["layers.0.query.bias"].loss is None


def test_the_loss_of_nothing() -> None:
    zeros, ones = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    assert Loss.between(zeros, zeros) == Loss(0.0, 0.0)
    assert Loss.between(zeros, ones) == Loss(1.0, 1.0)
    assert Loss.between(ones, zeros) == Loss(1.0, 1.0)


def test_alternatives(models: Models) -> None:
    model, folder = models("BertForMaskedLM")
    state = state_of(model)
    rows, columns = state[WORD].shape
    others = convert(folder, embeddings="bit1", table_layout=Layout.COLUMN).alternatives
    assert {other.slot for other in others} == {"embeddings.word.weight"}
    words = 8 * rows * -(-columns // 64)
    assert {other.stored: other.n_bytes for other in others} == {
        "fp32": 4 * rows * columns,
        "fp16, rounded": 2 * rows * columns,
        "int8, row scales": rows * columns + 4 * rows,
        "1-bit, row scales": words + 4 * rows,
        "1-bit, column scales": words + 4 * columns,
        "1-bit, one scale": words + 4,
    }
    assert [other.stored for other in others if other.is_chosen] == ["1-bit, column scales"]
    losses = {other.stored: other.loss for other in others}
    assert losses["fp32"] is None
    for layout, stored in ((Layout.ROW, "row scales"), (Layout.COLUMN, "column scales")):
        error = words_instead(state[WORD], "bit1", layout) - state[WORD]
        loss = losses[f"1-bit, {stored}"]
        assert loss is not None
        assert loss.relative == pytest.approx(norm(error) / norm(state[WORD]), rel=1e-5)


@pytest.mark.parametrize(
    ("wish", "options", "binarized", "embeddings"),
    [
        (None, {}, None, None),
        (Binarization("sign"), {}, "sign: layers", None),
        (Binarization("xnor", "head"), {"embeddings": "int8"}, "xnor head: layers", "int8 row"),
        (
            Binarization("xnor", "row", ("layers", "embeddings"), Layout.COLUMN),
            {},
            "xnor row (tables column): layers, embeddings",
            None,
        ),
        (
            Binarization("zero-one", "row", ("all",)),
            {"embeddings": "int8"},
            "zero-one: all",
            None,
        ),
        (None, {"embeddings": "bit1", "table_layout": Layout.TENSOR}, None, "bit1 tensor"),
    ],
)
def test_metadata(
    wish: Binarization | None,
    options: dict[str, Any],
    binarized: str | None,
    embeddings: str | None,
    tmp_path: Path,
) -> None:
    metadata = convert(save(tmp_path, masked_lm_state()), wish, **options).model.metadata
    assert metadata.get("source.binarized") == binarized
    assert metadata.get("source.embeddings") == embeddings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small float masked LM, made without torch."""
    return save(tmp_path / "checkpoint", masked_lm_state())


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_the_report(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(folder, tmp_path / "model.bitm", "--binarize", "xnor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("relative error  largest error")
    query = next(line for line in lines if line.startswith("layers.0-1.query.weight"))
    state = masked_lm_state()
    losses = []
    for n in range(2):
        weights = state[f"bert.encoder.layer.{n}.attention.self.query.weight"]
        losses.append(Loss.between(weights, dense(weights, "xnor")))
    assert query.split()[-2:] == [
        f"{max(loss.relative for loss in losses):.3g}",
        f"{max(loss.greatest for loss in losses):.3g}",
    ]
    start = next(n for n, line in enumerate(lines) if line.startswith("choices for embeddings"))
    table = lines[start + 1 : lines.index("", start)]
    chosen = [line for line in table if line.startswith("*")]
    assert [line.split("  ")[0] for line in chosen] == ["* fp16, rounded"]
    assert f"{2 * WORDS * HIDDEN:,}" in chosen[0]
    assert len(table) == 6
    note = next(line for line in lines if line.startswith("note: binarized"))
    assert "binarized without training (xnor row: layers): 12 matrices" in note


def test_without_losses_there_are_no_columns_for_them(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run(folder, tmp_path / "model.bitm") == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("bytes before  bytes after")


def test_the_report_in_json(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--binarize", "sign", "--components", "head", "--embeddings", "int8", "--json"]
    assert run(folder, tmp_path / "model.bitm", *arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metadata"]["source.binarized"] == "sign: head"
    rows = {row["slot"]: row for row in report["tensors"]}
    assert set(rows["mlm.transform.weight"]["loss"]) == {"relative", "greatest"}
    assert rows["layers.0.query.weight"]["loss"] is None
    chosen = {
        other["slot"]: other["stored"] for other in report["alternatives"] if other["is_chosen"]
    }
    assert chosen == {"embeddings.word.weight": "int8, row scales"}
    assert "mlm.decoder.weight" in {other["slot"] for other in report["alternatives"]}


def test_help_says_what_components_cover(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    out = capsys.readouterr().out
    for component in COMPONENTS:
        assert re.search(rf"\n +{component}  ", out)


# Verification


@pytest.mark.parametrize(
    "options",
    [
        "--binarize sign",
        "--binarize zero-one --components all",
        "--binarize xnor --components embeddings --embedding-scales column",
        "--binarize xnor --scales head --embeddings int8",
        "--embeddings bit1 --embedding-scales tensor",
        "--embeddings int8 --matrices int8",
    ],
)
def test_verify(options: str, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("bitm")
    assert run(folder, tmp_path / "model.bitm", *options.split(), "--verify", "--json") == 0
    assert json.loads(capsys.readouterr().out)["verification"]["passed"] is True


def test_a_file_that_cannot_be_written_goes_by_its_target(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e39}))
    output = tmp_path / "model.bitm"
    assert run(folder, output, "--verify") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"bitm-convert: error: {output}: configuration: layer_norm_eps")
    assert "[FILE_CONFIG]" in error


def test_a_file_that_the_runtime_refuses_goes_by_its_target(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    bitm = pytest.importorskip("bitm")

    def refuse(path: Path, **options: Any) -> None:
        raise bitm.BitmError(f"{path}: tensor x: expected y, found z")

    monkeypatch.setattr(bitm, "Model", refuse)
    output = tmp_path / "model.bitm"
    assert run(folder, output, "--verify") == 1
    assert capsys.readouterr().err == (
        f"bitm-convert: error: {output}: the runtime refuses it: tensor x: expected y, found z "
        "[verification]\n"
    )
    assert not list(tmp_path.glob("*.bitm"))


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--binarize half", "invalid choice: 'half'"),
        ("--binarize sign --components heads", "invalid choice: 'heads'"),
        ("--binarize xnor --scales column", "invalid choice: 'column'"),
        ("--components layers", "name a scheme"),
        ("--scales row", "name a scheme"),
        ("--binarize sign --scales row", "sign has none"),
        ("--binarize zero-one --scales row", "zero-one has none"),
        ("--embedding-scales row", "--embedding-scales is of --embeddings bit1"),
        ("--embeddings int8 --embedding-scales row", "--embedding-scales is of"),
        ("--binarize xnor --embedding-scales row", "--embedding-scales is of"),
        ("--binarize sign --components all --embedding-scales row", "--embedding-scales is of"),
        ("--matrices bit1", "invalid choice: 'bit1'"),
    ],
)
def test_wrong_usage(
    options: str, message: str, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(folder, tmp_path / "model.bitm", *options.split())
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: bitm-convert")
    assert message in error


def test_a_component_that_is_not_there(tmp_path: Path) -> None:
    state = {name: values for name, values in masked_lm_state().items() if "cls." not in name}
    folder = save(tmp_path, state)
    with pytest.raises(OptionError, match="--components head: the model has no matrix"):
        convert(folder, Binarization("sign", components=("layers", "head")))


def test_a_binarized_family_is_not_binarized_again(tmp_path: Path, capsys: Capture) -> None:
    shapes = {"alpha_w": (1,), "alpha_b": (1,)}
    state = masked_lm_state()
    for name, shape in shapes.items():
        state |= random_state({f"bert.encoder.layer.0.output.dense.{name}": shape})
    folder = save(tmp_path / "checkpoint", state)
    assert run(folder, tmp_path / "model.bitm", "--binarize", "sign") == 1
    error = capsys.readouterr().err
    assert "--binarize is for a float BERT, but this is a binarized one (bitmaps)" in error
    assert error.endswith("[option]\n")


# Sizes


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """bench/file_sizes.py as a module."""
    pytest.importorskip("safetensors.numpy")
    monkeypatch.syspath_prepend(ROOT / "bench")  # what it imports from beside it
    spec = importlib.util.spec_from_file_location("file_sizes", ROOT / "bench/file_sizes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_sizes_of_bert_base(bench: Any, tmp_path: Path) -> None:
    """As DESIGN has them: what fp16, int8 and 1-bit embeddings may take beside 1-bit layers."""
    bench.make_checkpoint(tmp_path)
    for options, megabytes in (
        ("--binarize xnor", 62),
        ("--binarize xnor --embeddings int8", 38),
        ("--binarize xnor --embeddings bit1", 16),
    ):
        result = bench.convert(tmp_path, options)
        assert result["file_bytes"] <= megabytes * 1e6
        assert result["encoder_bytes"] <= 11e6
        assert result["peak_bytes"] < 2e9
