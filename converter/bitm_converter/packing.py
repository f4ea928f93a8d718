"""Turns a matrix of a checkpoint into a tensor of the file: single bits, ternary, or floats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Union

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
class Loss:
    """How far a matrix is from the floats in whose place it is.

    `relative` is the Frobenius norm of the difference over that of the floats (0 without a
    difference, 1 where all floats are 0), `greatest` the largest absolute difference.
    """

    relative: float
    greatest: float

    @classmethod
    def between(cls, floats: Float32, instead: Float32) -> Loss:
        """The loss of using `instead`, of the same shape."""
        difference = instead - floats
        greatest = float(max(difference.max(), -difference.min()))
        size = _norm(floats) or _norm(instead) or 1.0
        return cls(_norm(difference) / size, greatest)


def _norm(matrix: Float32) -> float:
    return float(np.sqrt(np.einsum("ij,ij->", matrix, matrix, dtype=np.float64)))


@dataclass(frozen=True)
class Packed:
    """A tensor with words for the report: what the matrix was `found` to be and how it is `stored`.

    `rounding` is the largest absolute difference between the tensor and the matrix that the model
    is meant to have. `loss` is that to the floats of the checkpoint, None where it keeps them.
    """

    tensor: Tensor
    found: str
    stored: str
    rounding: float
    loss: Loss | None = None

    @property
    def is_one_bit(self) -> bool:
        """Whether the matrix became single bits."""
        return self.tensor.dtype == DType.BIT1


@dataclass(frozen=True, eq=False)
class Codes:
    """A matrix as its family defines it: scale x code + offset.

    `codes` are -1, 0 and +1, int8 [rows, columns]; `scales` and `offsets` float32 [n], n by the
    `layout` that both have. `found` is what the report says of it.
    """

    codes: npt.NDArray[np.int8]
    scales: Float32
    layout: Layout
    found: str
    offsets: Float32 | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""
        return self.codes.shape

    def dense(self) -> Float32:
        """The matrix in float32, each operation rounded."""
        scaled = self.codes * self._spread(self.scales)
        return scaled if self.offsets is None else scaled + self._spread(self.offsets)

    def pack(self) -> Packed:
        """Single bits where no code is 0, else ternary."""
        groups = {
            Layout.TENSOR: "tensor",
            Layout.ROW_GROUP: f"{self.scales.size} row groups",
            Layout.ROW: "row",
            Layout.COLUMN: "column",
        }[self.layout]
        offset_layout = Layout.NONE if self.offsets is None else self.layout
        companions = (self.scales, self.layout, self.offsets, offset_layout)
        n_zeros = self.codes.size - int(np.count_nonzero(self.codes))
        stored = f"{'ternary' if n_zeros else '1-bit'}, {_scales(groups)}"
        if self.offsets is not None:
            stored += ", offsets"
        if n_zeros:
            return Packed(Tensor.from_codes(self.codes, *companions), self.found, stored, 0.0)
        return Packed(Tensor.from_bits(self.codes > 0, *companions), self.found, stored, 0.0)

    def _spread(self, values: Float32) -> Float32:
        if self.layout == Layout.COLUMN:
            return values[None, :]
        return np.repeat(values, self.codes.shape[0] // values.size)[:, None]


@dataclass(frozen=True, eq=False)
class Int8:
    """A matrix of one byte an entry: codes from -127 to 127, int8 [rows, columns], times `scales`,
    float32 [rows]."""

    codes: npt.NDArray[np.int8]
    scales: Float32

    @classmethod
    def nearest(cls, matrix: Float32) -> Int8:
        """Rows scaled so that their greatest magnitude is 127, then rounded; ties to even."""
        scales = np.abs(matrix).max(axis=1) / np.float32(127)
        steps = matrix / np.where(scales > 0, scales, 1)[:, None]
        # A scale so small that it was rounded itself may lead beyond 127.
        return cls(np.clip(np.rint(steps), -127, 127).astype(np.int8), scales)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""
        return self.codes.shape

    def dense(self) -> Float32:
        """The matrix in float32, each operation rounded."""
        dense: Float32 = self.codes * self.scales[:, None]
        return dense

    def pack(self) -> Packed:
        """An i8 tensor."""
        return Packed(Tensor.from_int8(self.codes, self.scales), "float", "int8, row scales", 0.0)


Coded = Union[Codes, Int8]


def pack_instead(floats: Float32, values: Coded) -> Packed:
    """Packs what a model computes with in place of floats."""
    return replace(values.pack(), loss=Loss.between(floats, values.dense()))


def is_two_valued(matrix: Float32) -> bool:
    """Whether `pack_matrix` makes bits of it."""
    return find_two_values(matrix, _divisors(matrix.shape[0])) is not None


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
    return pack_floats(matrix, floats)


def pack_floats(matrix: Float32, floats: FloatFormat) -> Packed:
    """Packs a finite matrix [rows, columns] as floats, as `pack_matrix` does with most."""
    # The first row alone ends most questions of "exact".
    if floats == "fp32" or (floats == "exact" and _to_halves(matrix[:1])[1] > 0):
        return Packed(Tensor.from_float(matrix), "float", "fp32", 0.0)
    halves, rounding = _to_halves(matrix)
    if np.isinf(rounding):
        return Packed(Tensor.from_float(matrix), "float, too large for fp16", "fp32", 0.0)
    if rounding > 0 and floats == "exact":
        return Packed(Tensor.from_float(matrix), "float", "fp32", 0.0)
    tensor = Tensor.from_float(halves, DType.F16)
    if rounding == 0:
        return Packed(tensor, "float", "fp16", 0.0)
    loss = Loss.between(matrix, halves.astype(np.float32))
    return Packed(tensor, "float", "fp16, rounded", rounding, loss)


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


def _to_halves(matrix: Float32) -> tuple[npt.NDArray[np.float16], float]:
    """The matrix in fp16, and the largest change of a value: infinite if one overflows."""
    with np.errstate(over="ignore"):
        halves = matrix.astype(np.float16)
    return halves, float(np.abs(halves.astype(np.float32) - matrix).max())


def _divisors(n: int) -> list[int]:
    """The divisors of n between 1 and n: the sizes that row groups can have."""
    small = [d for d in range(2, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})
