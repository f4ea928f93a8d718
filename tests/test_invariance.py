"""One answer: the same bits whatever the threads, the batch, the padding, the order of calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import bitm_formats
from bitm import Model
from bitm_formats import Layout
from tiny_models import config, masked_lm

MODES = ["int8", "int11", "int16", "float32"]
Ints = npt.NDArray[np.int64]


def sequences(model: Model, n: int, seed: int = 1) -> list[Ints]:
    """Random sequences of lengths from 1 to the model's positions."""
    rng = np.random.default_rng(seed)
    longest, vocab_size = model.info["max_positions"], model.info["vocab_size"]
    lengths = [1, longest, *rng.integers(1, longest + 1, n - 2)]
    return [rng.integers(0, vocab_size, length) for length in lengths]


def padded(rows: list[Ints], length: int, filler: int = 0) -> tuple[Ints, Ints]:
    """Ids and mask [B, length]."""
    ids = np.full((len(rows), length), filler)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["tiny", "columns"])
def model_path(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path) -> Path:
    if request.param == "tiny":
        return tiny_model
    path = tmp_path / "columns.bitm"
    rng = np.random.default_rng(2)
    layouts = {"scale_layout": Layout.COLUMN, "offset_layout": Layout.ROW}
    bitm_formats.write(path, masked_lm(rng, config(head_size=16), **layouts))
    return path


def test_threads_batches_and_padding_change_no_bit(model_path: Path, mode: str) -> None:
    with Model(model_path, threads=1, activations=mode) as alone:
        rows = sequences(alone, 37)
        expected = [alone.logits([row])[0] for row in rows]
    longest = max(map(len, rows))
    ids, mask = padded(rows, longest)
    for threads in (1, 2, 3, 5):
        with Model(model_path, threads=threads, activations=mode) as model:
            for split in (1, 5, 37):
                for start in range(0, len(rows), split):
                    part = slice(start, start + split)
                    found = model.logits(ids[part], mask[part])
                    for row, logits, want in zip(rows[part], found, expected[part]):
                        np.testing.assert_array_equal(logits[: len(row)], want)
                        assert not logits[len(row) :].any(), "padding is 0"


def test_what_lies_in_the_padding_does_not_matter(tiny_model: Path, mode: str) -> None:
    with Model(tiny_model, activations=mode) as model:
        rows = sequences(model, 6)
        ids, mask = padded(rows, 40)
        garbage, _ = padded(rows, 40, filler=-7)
        np.testing.assert_array_equal(model.logits(ids, mask), model.logits(garbage, mask * 3))


def test_requested_positions_are_rows_of_all_logits(tiny_model: Path, mode: str) -> None:
    """Of a batch that runs in several parts."""
    with Model(tiny_model, activations=mode) as model:
        rows = sequences(model, 37)
        ids, mask = padded(rows, 40)
        everything = model.logits(ids, mask)
        rng = np.random.default_rng(0)
        positions = np.array([[rng.integers(0, len(row)) for _ in range(9)] for row in rows])
        positions[:, 7] = -1
        positions[3:12] = -1  # more than a part in which nothing is asked for
        found = model.logits(ids, mask, positions=positions)
        for b in range(len(rows)):
            expected = everything[b][positions[b]]
            expected[positions[b] == -1] = 0
            np.testing.assert_array_equal(found[b], expected)


def test_a_hole_in_the_mask_is_only_a_missing_key(tiny_model: Path) -> None:
    """Tokens after a hole keep their positions, as in transformers."""
    with Model(tiny_model, activations="float32") as model:
        ids = np.arange(10, 22)[None]
        mask = np.ones_like(ids)
        mask[0, [0, 5]] = 0
        holes = model.hidden_states(ids, mask)
        moved = model.hidden_states(np.where(mask, ids, 99), mask)
        np.testing.assert_array_equal(holes, moved)
        assert not holes[0, [0, 5]].any()
        assert not np.array_equal(holes[0, 1:5], model.hidden_states(ids[:, 1:5])[0])


def test_the_real_model(small_model: Path, mode: str) -> None:
    with (
        Model(small_model, threads=1, activations=mode) as one,
        Model(small_model, threads=2, activations=mode) as two,
    ):
        rows = sequences(one, 3)
        ids, mask = padded(rows, 128)
        found = two.hidden_states(ids, mask)
        for row, states in zip(rows, found):
            np.testing.assert_array_equal(states[: len(row)], one.hidden_states([row])[0])
