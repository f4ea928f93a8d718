"""Arrays of ids: what users give, and what the library takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from bitm._native import Int32s
from bitm.errors import InputError

IntArray = Union[npt.ArrayLike, Sequence[Sequence[int]]]


def int_array(array: IntArray, name: str) -> Int32s:
    """Checks and converts to int32 [B, n]; values that int32 cannot hold are refused."""
    try:
        given = np.asarray(array)
    except ValueError as error:
        raise InputError(f"{name}: rows of different lengths: {error}") from None
    if given.ndim != 2 or given.size == 0:
        raise InputError(f"{name} has shape {list(given.shape)}, expected [batch, n], not empty")
    if given.dtype.kind not in "iub":
        raise InputError(f"{name} has dtype {given.dtype}, expected integers")
    converted = np.ascontiguousarray(given, dtype=np.int32)
    if given.dtype.itemsize >= 4 and not np.array_equal(converted, given):
        raise InputError(f"{name} has values that do not fit in 32 bits")
    return converted


def pad(rows: Sequence[npt.NDArray[np.integer[Any]]], filler: int) -> Int32s:
    """Joins rows of different lengths into [B, longest]."""
    padded = np.full((len(rows), max(map(len, rows))), filler, np.int32)
    for target, row in zip(padded, rows):
        target[: len(row)] = row
    return padded


def padding_mask(rows: Sequence[Int32s]) -> Int32s | None:
    """Returns the attention mask of padded rows, 1 in [B, longest] where a row has a value.

    None, which is no padding, where all are of one length.
    """
    lengths = [len(row) for row in rows]
    if min(lengths) == max(lengths):
        return None
    return (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int32)
