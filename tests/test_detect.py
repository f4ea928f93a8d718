"""The detector of two- and three-valued matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bitm_converter.checkpoint import open_checkpoint
from bitm_converter.detect import TwoValued, find_three_values, find_two_values

REAL = Path(__file__).parents[2] / "shared" / "checkpoints" / "w1-small-en"
ROWS, COLS, GROUP = 24, 32, 8
Float32 = NDArray[np.float32]


def signs() -> Float32:
    """-1 and +1, each at least twice in every row and column."""
    drawn = np.where(np.random.default_rng(0).random((ROWS, COLS)) < 0.5, -1, 1).astype(np.float32)
    assert all((abs(drawn.sum(axis)) <= drawn.shape[axis] - 4).all() for axis in (0, 1))
    return drawn


def scales(shape: tuple[int, ...], seed: int = 1) -> Float32:
    drawn = np.random.default_rng(seed).uniform(0.01, 1, shape)
    return drawn.astype(np.float32)


def detected(w: NDArray[Any], sizes: tuple[int, ...] = (GROUP,)) -> TwoValued:
    """Finds two values, and checks that they give the matrix back as float32."""
    found = find_two_values(w, sizes)
    assert found is not None
    values = found.values()
    assert values.dtype == found.scale.dtype == np.float32
    assert values.shape == found.bits.shape == w.shape
    error = np.abs(values - w.astype(np.float32).astype(np.float64)).max()
    assert error == found.max_error
    return found


LAYOUTS = {
    "tensor": ((1, 1), ROWS, 1),
    "rowgroup": ((ROWS // GROUP, 1), GROUP, ROWS // GROUP),
    "row": ((ROWS, 1), 1, ROWS),
    "column": ((1, COLS), 1, COLS),
}


def spread(layout: str, seed: int = 1) -> Float32:
    """One value for each group of the layout, as a whole matrix."""
    shape = LAYOUTS[layout][0]
    values = scales(shape, seed)
    if layout == "rowgroup":
        values = np.repeat(values, GROUP, axis=0)
    return np.broadcast_to(values, (ROWS, COLS))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_symmetric(layout: str, dtype: type[Any]) -> None:
    w = (signs() * spread(layout)).astype(dtype)
    found = detected(w)
    _, rows_per_group, groups = LAYOUTS[layout]
    assert (found.layout, found.rows_per_group) == (layout, rows_per_group)
    assert found.scale.shape == (groups,)
    assert found.offset is None
    assert found.max_error == 0
    assert np.array_equal(found.bits, w > 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zero_and_one_times_a_scale(layout: str) -> None:
    w = np.where(signs() > 0, spread(layout), np.float32(-0.0))
    found = detected(w)
    assert found.layout == layout
    assert found.max_error == 0
    assert found.offset is not None
    assert np.array_equal(found.offset, found.scale)
    assert np.array_equal(found.bits, w != 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_two_values(layout: str) -> None:
    low, high = -spread(layout, 2), spread(layout, 3) + 1
    found = detected(np.where(signs() > 0, high, low))
    assert found.layout == layout
    assert found.offset is not None
    assert found.max_error <= np.spacing(np.float32(2))
    assert np.array_equal(found.bits, signs() > 0)


def test_error_is_reported_when_no_exact_pair_is_stored() -> None:
    low, high = np.float32(1), np.nextafter(np.float32(1), np.float32(2))
    found = detected(np.where(signs() > 0, high, low))
    assert found.max_error > 0


def test_exact_pair() -> None:
    assert detected(np.where(signs() > 0, np.float32(0.75), np.float32(-0.25))).max_error == 0


def test_coarsest_group_wins() -> None:
    w = signs() * np.repeat(scales((2, 1)), 12, axis=0)
    assert detected(w, (4, 12, 6)).rows_per_group == 12
    assert detected(w, (4, 6)).rows_per_group == 6
    assert detected(w, (5, 7, 0, -2, 100)).layout == "row"


def test_constant_rows_of_a_symmetric_tensor() -> None:
    w = signs() * np.float32(0.3)
    w[4], w[5] = np.float32(0.3), np.float32(-0.3)
    found = detected(w)
    assert found.layout == "tensor"
    assert found.bits[4].all()
    assert not found.bits[5].any()


def test_constant_rows_among_scaled_rows() -> None:
    w = signs() * scales((ROWS, 1))
    w[4], w[5], w[6], w[7] = 7, -7, 0, np.float32(-0.0)
    found = detected(w)
    assert found.layout == "row"
    assert found.offset is None
    assert list(found.scale[4:8]) == [7, 7, 0, 0]
    assert found.bits[4].all()
    assert not found.bits[5].any()


@pytest.mark.parametrize("value", [0.0, -0.0, 2.5, -2.5])
def test_constant_matrix(value: float) -> None:
    found = detected(np.full((ROWS, COLS), value, np.float32))
    assert found.layout == "tensor"
    assert list(found.scale) == [abs(value)]
    assert found.offset is None


def test_zeros_of_both_signs_are_one_value() -> None:
    w = np.where(signs() > 0, np.float32(0.0), np.float32(-0.0))
    assert detected(w).layout == "tensor"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (ROWS - 1, COLS - 1)])
def test_not_finite(value: float, place: tuple[int, int]) -> None:
    w = signs()
    w[place] = value
    assert find_two_values(w, (GROUP,)) is None
    assert find_three_values(w, (GROUP,)) is None


def test_two_values_one_of_them_infinite() -> None:
    assert find_two_values(np.where(signs() > 0, np.inf, 1.0)) is None
    assert find_two_values(np.where(signs() > 0, 1e300, 1.0)) is None


def test_extreme_values() -> None:
    largest, smallest = np.finfo(np.float32).max, np.float32(1e-45)
    assert detected(signs() * largest).max_error == 0
    assert detected(signs() * smallest).max_error == 0


@pytest.mark.parametrize("place", [(0, 0), (0, COLS - 1), (ROWS - 1, 0), (11, 5)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_other_entry_ends_it(layout: str, place: tuple[int, int]) -> None:
    w = signs() * spread(layout)
    w[place] = np.nextafter(w[place], np.float32(9))
    assert find_two_values(w, (GROUP,)) is None


def test_ordinary_weights() -> None:
    w = np.random.default_rng(3).standard_normal((ROWS, COLS))
    assert find_two_values(w, (GROUP,)) is None
    assert find_three_values(w, (GROUP,)) is None


@pytest.mark.parametrize("shape", [(2, 40), (40, 2), (1, 2), (0, 5), (5, 0)])
def test_too_few_entries_tell_nothing(shape: tuple[int, int]) -> None:
    """Two rows, as of token types, hold two values in every column whatever they are."""
    w = np.random.default_rng(3).standard_normal(shape)
    assert find_two_values(w) is None
    assert find_three_values(w) is None


@pytest.mark.parametrize("shape", [(5,), (), (2, 3, 4)])
def test_only_matrices(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a matrix"):
        find_two_values(np.zeros(shape))


def ternary() -> Float32:
    w = np.random.default_rng(5).integers(-1, 2, (ROWS, COLS))
    w[:, :3] = -1, 0, 1
    return w.astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("layout", ["tensor", "rowgroup", "row"])
def test_three_values(layout: str, dtype: type[Any]) -> None:
    w = (ternary() * spread(layout)).astype(dtype)
    w[3] = 0
    assert find_two_values(w, (GROUP,)) is None
    found = find_three_values(w, (GROUP,))
    assert found is not None
    _, rows_per_group, groups = LAYOUTS[layout]
    assert (found.layout, found.rows_per_group) == (layout, rows_per_group)
    assert found.scale.shape == (groups,)
    assert np.array_equal(found.values(), w.astype(np.float32))
    assert np.array_equal(found.nonzero, w != 0)
    assert np.array_equal(found.bits, w > 0)


def test_three_values_that_are_not_symmetric() -> None:
    w = np.where(ternary() > 0, np.float32(0.5), ternary())
    assert find_three_values(w) is None


def test_the_trained_one_bit_model() -> None:
    """Its 36 encoder matrices hold -a and +a per row, its embeddings are ordinary floats."""
    if not REAL.is_dir():
        pytest.skip(f"no checkpoint at {REAL}")
    found = {}
    for name, lazy in open_checkpoint(REAL).items():
        if len(lazy.shape) == 2:
            w = lazy.read()
            two = find_two_values(w, (64,))
            if two is not None:
                found[name] = two
                assert np.array_equal(two.values(), w)
    assert len(found) == 36
    assert all(".encoder.layer." in name for name in found)
    assert {two.layout for two in found.values()} == {"row"}
    assert all(two.offset is None for two in found.values())
