"""Finds the matrices that hold few values: {lo, hi} (one bit an entry) or {-a, 0, +a} (ternary).

A checkpoint that was trained to be binary often stores its matrices already binarized, as floats.
Which entries share their values is the layout: all of the tensor, consecutive rows (the heads of an
attention), each row, each column. The coarsest layout that holds exactly is reported; values are
compared as float32 and -0.0 equals 0.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Layout = Literal["tensor", "rowgroup", "row", "column"]
Float32 = NDArray[np.float32]

# Any group of one or two entries holds at most two values: that tells nothing.
_SMALLEST_GROUP = 3


@dataclass(frozen=True, eq=False)
class TwoValued:
    """w = offset + scale * code, with code +1 where `bits` is true and -1 elsewhere.

    `scale` and `offset` are float32 [groups], `offset` is None when all are zero; `bits` is bool
    [rows, cols]; `rows_per_group` is the number of consecutive rows in a group (1 for the layouts
    row and column). `max_error` is the largest |offset + scale * code - w|, the sum taken in
    float32: 0.0 for -a and +a; with an offset, a float32 pair that gives both values exactly need
    not exist.
    """

    layout: Layout
    rows_per_group: int
    scale: Float32
    offset: Float32 | None
    bits: NDArray[np.bool_]
    max_error: float

    def values(self) -> Float32:
        """Returns the matrix that this describes, float32 [rows, cols]."""
        scale = _per_entry(self.scale, self.layout, self.rows_per_group)
        code_times_scale = np.where(self.bits, scale, -scale)
        if self.offset is None:
            return code_times_scale
        return _per_entry(self.offset, self.layout, self.rows_per_group) + code_times_scale


@dataclass(frozen=True, eq=False)
class ThreeValued:
    """w = scale * code, with code 0 where `nonzero` is false, else +1 or -1 as in TwoValued.

    `scale` is float32 [groups], not negative; `nonzero` and `bits` are bool [rows, cols], `bits`
    false where w is 0.
    """

    layout: Layout
    rows_per_group: int
    scale: Float32
    nonzero: NDArray[np.bool_]
    bits: NDArray[np.bool_]

    def values(self) -> Float32:
        """Returns the matrix that this describes, float32 [rows, cols]."""
        scale = _per_entry(self.scale, self.layout, self.rows_per_group)
        return np.where(self.nonzero, np.where(self.bits, scale, -scale), np.float32(0))


def find_two_values(w: NDArray[Any], row_group_sizes: Sequence[int] = ()) -> TwoValued | None:
    """Describes a matrix of at most two values per tensor, row group, row or column.

    `w` is [rows, cols] of any real dtype; `row_group_sizes` are the sizes, in rows, to try for row
    groups. Returns None if no layout holds or if an entry is not finite in float32. A group with a
    single value v gets the scale |v| and no offset. Raises ValueError if `w` is not a matrix.
    """
    w = _as_float32_matrix(w)
    rows, cols = w.shape
    extremes = _extremes(w) if cols >= _SMALLEST_GROUP else None
    if extremes is not None:
        for layout, size in _coarser_than_row(rows, row_group_sizes):
            # A group's values are those of its rows, so two columns stand for the whole matrix.
            found = _extremes(np.stack(extremes, axis=1).reshape(rows // size, 2 * size))
            if found is not None:
                return _two_valued(w, layout, size, *found)
        return _two_valued(w, "row", 1, *extremes)
    if rows >= _SMALLEST_GROUP:
        found = _extremes(w.T)
        if found is not None:
            return _two_valued(w, "column", 1, *found)
    return None


def find_three_values(w: NDArray[Any], row_group_sizes: Sequence[int] = ()) -> ThreeValued | None:
    """Describes a matrix whose entries are -a, 0 or +a, with one `a` per tensor, row group or row.

    Arguments, None and errors as for `find_two_values`, which is to be asked first: a matrix with
    the values -a and +a alone also fits here.
    """
    w = _as_float32_matrix(w)
    rows, cols = w.shape
    if cols < _SMALLEST_GROUP or rows == 0:
        return None
    row_scale = _common_magnitude(w)
    if row_scale is None:
        return None
    for layout, size in _coarser_than_row(rows, row_group_sizes):
        scale = _common_magnitude(row_scale.reshape(rows // size, size))
        if scale is not None:
            return ThreeValued(layout, size, scale, nonzero=w != 0, bits=w > 0)
    return ThreeValued("row", 1, row_scale, nonzero=w != 0, bits=w > 0)


def _as_float32_matrix(w: NDArray[Any]) -> Float32:
    if w.ndim != 2:
        raise ValueError(f"expected a matrix, found {w.ndim} dimensions")
    with np.errstate(over="ignore"):
        return np.asarray(w, dtype=np.float32)


def _coarser_than_row(rows: int, row_group_sizes: Sequence[int]) -> list[tuple[Layout, int]]:
    """The layouts that join rows, and how many rows a group has, coarsest first."""
    sizes = {n for n in row_group_sizes if 1 < n < rows and rows % n == 0}
    groups: list[tuple[Layout, int]] = [("rowgroup", n) for n in sorted(sizes, reverse=True)]
    return [("tensor", rows), *groups]


def _extremes(groups: Float32) -> tuple[Float32, Float32] | None:
    """Returns the lowest and highest value of each row, unless some row holds a third value.

    `groups` is [groups, entries]. The first row is tried alone: on ordinary weights that ends it.
    """
    if groups.size == 0:
        return None
    for tried in (groups[:1], groups):
        low, high = tried.min(axis=1), tried.max(axis=1)
        ends = (tried == low[:, None]) | (tried == high[:, None])
        if not ends.all() or not np.isfinite(low).all() or not np.isfinite(high).all():
            return None
    return low, high


def _common_magnitude(groups: Float32) -> Float32 | None:
    """Returns the largest |entry| of each row, unless some row holds another one besides 0."""
    for tried in (groups[:1], groups):
        magnitudes = np.abs(tried)
        largest: Float32 = magnitudes.max(axis=1)
        fits = (magnitudes == 0) | (magnitudes == largest[:, None])
        if not fits.all() or not np.isfinite(largest).all():
            return None
    return largest


def _two_valued(
    w: Float32, layout: Layout, rows_per_group: int, low: Float32, high: Float32
) -> TwoValued:
    """Turns the two values of each group into scale and offset."""
    # A constant group becomes symmetric: its value is then exact without an offset.
    constant = low == high
    low, high = np.where(constant, -np.abs(low), low), np.where(constant, np.abs(high), high)
    # In float64, where neither the sum nor the difference can overflow.
    wide_low, wide_high = low.astype(np.float64), high.astype(np.float64)
    scale = ((wide_high - wide_low) / 2).astype(np.float32)
    offset = ((wide_high + wide_low) / 2).astype(np.float32)
    errors = np.abs(offset - scale - wide_low), np.abs(offset + scale - wide_high)
    return TwoValued(
        layout,
        rows_per_group,
        scale,
        offset if offset.any() else None,
        bits=w == _per_entry(high, layout, rows_per_group),
        max_error=float(max(error.max() for error in errors)),
    )


def _per_entry(values: Float32, layout: Layout, rows_per_group: int) -> Float32:
    """Shapes [groups] so that it broadcasts over [rows, cols]."""
    if layout == "tensor":
        return values[:, None]
    if layout == "column":
        return values[None, :]
    return np.repeat(values, rows_per_group)[:, None]
