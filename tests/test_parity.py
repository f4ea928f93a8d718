"""The runtime gives what transformers gives, and what SPEC.md says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bitm_formats
from bitm import Model
from bitm_formats import DType, Layout
from conftest import needs
from spec_reference import Reference
from tiny_models import bit_matrix, config, float_matrix, masked_lm, vector

# Each row: layout of scales, layout of offsets, number of row groups.
LAYOUTS = [
    (Layout.ROW, Layout.NONE, 1),
    (Layout.NONE, Layout.NONE, 1),
    (Layout.TENSOR, Layout.TENSOR, 1),
    (Layout.ROW, Layout.ROW, 1),
    (Layout.ROW_GROUP, Layout.NONE, 3),
    (Layout.ROW_GROUP, Layout.ROW, 3),
    (Layout.COLUMN, Layout.NONE, 1),
    (Layout.COLUMN, Layout.COLUMN, 1),
    (Layout.ROW, Layout.COLUMN, 1),
    (Layout.COLUMN, Layout.ROW, 1),
]


def worst_error(model: bitm_formats.ModelFile, path: Path, activations: str) -> float:
    """Greatest difference of logits from the reference, relative to the logits' spread."""
    bitm_formats.write(path, model)
    reference, worst = Reference(model), 0.0
    rng = np.random.default_rng(7)
    with Model(path, activations=activations) as runtime:
        for length in (1, 2, 17, model.config.max_positions):
            ids = rng.integers(0, model.config.vocab_size, length)
            types = rng.integers(0, model.config.n_token_types, length)
            expected = reference.logits(ids, types)
            found = runtime.logits([ids], token_type_ids=[types])[0]
            worst = max(worst, float(np.abs(found - expected).max() / expected.std()))
    return worst


@pytest.mark.parametrize(("scales", "offsets", "groups"), LAYOUTS)
def test_every_layout_follows_the_specification(
    scales: Layout, offsets: Layout, groups: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(int(scales) * 10 + int(offsets))
    c = config(intermediate_size=75 if groups == 1 else 78)
    model = masked_lm(rng, c, scale_layout=scales, offset_layout=offsets, groups=groups)
    # Random weights amplify rounding far more than trained ones, hence the wide bounds.
    assert worst_error(model, tmp_path / "m.bitm", "float32") < 2e-5
    assert worst_error(model, tmp_path / "m.bitm", "int16") < 2e-3
    assert worst_error(model, tmp_path / "m.bitm", "int8") < 0.5


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_every_activation_function(number: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(number)
    model = masked_lm(rng, config(hidden_activation=number, head_activation=number))
    assert worst_error(model, tmp_path / "m.bitm", "float32") < 2e-5


@pytest.mark.parametrize("dtype", [DType.F16, DType.F32])
def test_float_matrices_and_an_own_decoder(dtype: DType, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    model = masked_lm(rng)
    c = model.config
    for name in [n for n in model.tensors if n.endswith(("query.weight", "output.weight"))]:
        rows, columns = model.tensors[name].shape
        model.tensors[name] = float_matrix(rng, rows, columns, dtype)
    model.tensors["mlm.decoder.weight"] = float_matrix(rng, c.vocab_size, c.hidden_size, dtype)
    assert worst_error(model, tmp_path / "m.bitm", "float32") < 2e-5


def test_second_branches_are_added(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    model = masked_lm(rng)
    for name in ("layers.0.key", "layers.1.intermediate"):
        rows, columns = model.tensors[f"{name}.weight"].shape
        model.tensors[f"{name}.second.weight"] = bit_matrix(rng, rows, columns)
        model.tensors[f"{name}.second.bias"] = vector(rng, rows)
    c = model.config
    model.tensors["embeddings.word.second.weight"] = bit_matrix(rng, c.vocab_size, c.hidden_size)
    assert worst_error(model, tmp_path / "m.bitm", "float32") < 2e-5


@pytest.mark.parametrize("layout", [Layout.TENSOR, Layout.ROW, Layout.COLUMN])
def test_one_bit_embeddings_also_as_the_decoder(layout: Layout, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    model = masked_lm(rng)
    for name in ("word", "token_type", "position"):
        full = f"embeddings.{name}.weight"
        rows, columns = model.tensors[full].shape
        model.tensors[full] = bit_matrix(rng, rows, columns, scale_layout=layout)
    assert worst_error(model, tmp_path / "m.bitm", "float32") < 2e-5


def test_hidden_states_of_every_layer(tmp_path: Path) -> None:
    model = masked_lm(np.random.default_rng(6))
    bitm_formats.write(tmp_path / "m.bitm", model)
    ids = np.arange(5, 30)
    expected = Reference(model).hidden_states(ids)
    with Model(tmp_path / "m.bitm", activations="float32") as runtime:
        for layer, states in enumerate(expected):
            found = runtime.hidden_states([ids], layer=layer)[0]
            np.testing.assert_allclose(found, states, atol=2e-4, err_msg=f"layer {layer}")
        np.testing.assert_array_equal(
            runtime.hidden_states([ids]), runtime.hidden_states([ids], layer=len(expected) - 1)
        )


def expected_positions(masks: np.ndarray) -> np.ndarray:
    """[n, 2] pairs of sequence and position -> [B, 1]."""
    assert masks[:, 0].tolist() == list(range(len(masks)))
    return masks[:, 1:]


@pytest.mark.parametrize(
    ("activations", "tolerance", "n_words"),
    [("float32", 1e-3, 5), ("int16", 1e-2, 5), ("int11", 0.2, 3), ("int8", 1.0, 1)],
)
def test_the_real_model_meets_its_recorded_outputs(
    small_model: Path, small_checkpoint: Path, activations: str, tolerance: float, n_words: int
) -> None:
    recorded = np.load(small_checkpoint / "expected.npz")
    with Model(small_model, activations=activations) as model:
        logits = model.logits(
            recorded["input_ids"],
            recorded["attention_mask"],
            positions=expected_positions(recorded["mask_positions"]),
        )[:, 0]
    assert np.abs(logits - recorded["mask_logits"]).max() <= tolerance
    best = np.argsort(-logits, axis=1, kind="stable")[:, :n_words]
    np.testing.assert_array_equal(best, recorded["top5_ids"][:, :n_words])


def test_fill_mask_is_the_transformers_pipeline(small_model: Path, small_checkpoint: Path) -> None:
    needs("torch")
    needs("transformers")
    import torch
    from transformers import BertForMaskedLM, BertTokenizer, pipeline

    tokenizer = BertTokenizer(str(small_checkpoint / "vocab.txt"), do_lower_case=True)
    # Its float16 weights are run as float32, or the pipeline itself would round.
    network = BertForMaskedLM.from_pretrained(small_checkpoint, dtype=torch.float32)
    reference = pipeline("fill-mask", network, tokenizer=tokenizer)
    texts = [
        "The river flows into the Atlantic [MASK].",
        "He didn't say that [MASK] was wrong, did he?",
        "The [MASK] of France is [MASK].",
        'Café [MASK] - the "best" in town!',
    ]
    with Model(small_model, activations="float32") as model:
        for arguments in ({}, {"top_k": 3}, {"targets": ["ocean", "sea", "paris"]}):
            found = model.fill_mask(texts, **arguments)
            assert len(found) == len(texts)
            for text, ours in zip(texts, found):
                assert ours == model.fill_mask(text, **arguments)
                theirs = reference(text, **arguments)
                nested = isinstance(theirs[0], list)
                for a, b in zip(ours if nested else [ours], theirs if nested else [theirs]):
                    assert [p.pop("score") for p in a] == pytest.approx(
                        [p.pop("score") for p in b], abs=1e-5
                    )
                    assert a == b
