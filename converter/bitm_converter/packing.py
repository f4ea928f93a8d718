"""Turns one matrix of a checkpoint into a tensor of the file: one bit an entry, or floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from bitm_formats import DType, Layout, Tensor

from .detect import Float32, TwoValued, find_two_values

FloatFormat = Literal["fp16", "fp32", "exact"]

_LAYOUTS = {
    "tensor": Layout.TENSOR,
    "rowgroup": Layout.ROW_GROUP,
    "row": Layout.ROW,
    "column": Layout.COLUMN,
}


@dataclass(frozen=True)
class Packed:
    """A tensor with words for the report: what the matrix was `found` to be and how it is `stored`.

    `rounding` is the largest absolute difference between the tensor and the matrix.
    """

    tensor: Tensor
    found: str
    stored: str
    rounding: float

    @property
    def is_one_bit(self) -> bool:
        """Whether the matrix became single bits."""
        return self.tensor.dtype == DType.BIT1


def pack_matrix(values: npt.NDArray[Any], floats: FloatFormat) -> Packed:
    """Packs a finite float matrix [rows, columns].

    Two values per tensor, row group, row or column make a bit1 tensor. Anything else is kept as
    `floats` says: fp32, fp16 (fp32 where a value would overflow), or `exact`, the smaller one that
    keeps every value.
    """
    matrix = np.asarray(values, np.float32)
    two_valued = find_two_values(matrix, _divisors(matrix.shape[0]))
    if two_valued is not None:
        return _pack_bits(two_valued)
    return _pack_floats(matrix, floats)


def pack_vector(values: npt.NDArray[Any]) -> Packed:
    """Keeps a vector (bias, norm) as float32, which is what the format asks for."""
    return Packed(Tensor.from_float(values), "float", "fp32", 0.0)


def _pack_bits(found: TwoValued) -> Packed:
    layout = _LAYOUTS[found.layout]
    groups = f"{found.scale.size} row groups" if layout == Layout.ROW_GROUP else found.layout
    if found.offset is None:
        tensor = Tensor.from_bits(found.bits, found.scale, layout)
        return Packed(tensor, f"-a, +a per {groups}", f"1-bit, {_scales(groups)}", found.max_error)
    tensor = Tensor.from_bits(found.bits, found.scale, layout, found.offset, layout)
    stored = f"1-bit, {_scales(groups)}, offsets"
    return Packed(tensor, f"two values per {groups}", stored, found.max_error)


def _scales(groups: str) -> str:
    return "one scale" if groups == "tensor" else f"{groups} scales"


def _pack_floats(matrix: Float32, floats: FloatFormat) -> Packed:
    # The first row alone ends most questions of "exact".
    if floats == "fp32" or (floats == "exact" and _to_halves(matrix[:1])[1] > 0):
        return Packed(Tensor.from_float(matrix), "float", "fp32", 0.0)
    halves, rounding = _to_halves(matrix)
    if np.isinf(rounding):
        return Packed(Tensor.from_float(matrix), "float, too large for fp16", "fp32", 0.0)
    if rounding > 0 and floats == "exact":
        return Packed(Tensor.from_float(matrix), "float", "fp32", 0.0)
    stored = "fp16, rounded" if rounding > 0 else "fp16"
    return Packed(Tensor.from_float(halves, DType.F16), "float", stored, rounding)


def _to_halves(matrix: Float32) -> tuple[npt.NDArray[np.float16], float]:
    """The matrix in fp16, and the largest change of a value: infinite if one overflows."""
    with np.errstate(over="ignore"):
        halves = matrix.astype(np.float16)
    return halves, float(np.abs(halves.astype(np.float32) - matrix).max())


def _divisors(n: int) -> list[int]:
    """The divisors of n between 1 and n: the sizes that row groups can have."""
    small = [d for d in range(2, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})
