"""A model as the writer takes it and the reader gives it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bitm_formats.errors import FormatError, Status
from bitm_formats.spec import (
    Config,
    DType,
    Header,
    Layout,
    TensorEntry,
    as_float32,
    words_per_row,
)

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_NUMPY_TYPES = {
    DType.F32: "<f4",
    DType.F16: "<f2",
    DType.I8: "i1",
    DType.BIT1: "<u8",
    DType.TERN: "<u8",
}


@dataclass(eq=False)
class Tensor:
    """A matrix (shape (rows, columns)) or a vector (shape (n,)), as section 3.3 stores it.

    `data`: f32, f16 and i8 have `shape`; bit1 is uint64 [rows, words], tern uint64 [2, rows, words]
    (nonzero bits, sign bits), words = ceil(columns / 64).
    `scales`, `offsets`: float32 [n] with n = 1, row groups, rows or columns by the layouts; the
    file keeps them in tensors of their own, `X.scale` and `X.offset`.

    Raises FormatError where the arrays do not fit together.
    """

    dtype: DType
    shape: tuple[int, ...]
    data: Array
    scale_layout: Layout = Layout.NONE
    scales: Floats | None = None
    offset_layout: Layout = Layout.NONE
    offsets: Floats | None = None

    def __post_init__(self) -> None:
        self.shape = tuple(int(n) for n in self.shape)
        if len(self.shape) not in (1, 2) or 0 in self.shape:
            message = f"a tensor has 1 or 2 dimensions above 0, but the shape is {self.shape}"
            raise FormatError(Status.FILE_TENSOR_SHAPE, message)
        expected_type = numpy_type(self.dtype)
        if self.data.dtype != expected_type:
            message = f"{self.dtype.name} data are {expected_type}, but found {self.data.dtype}"
            raise FormatError(Status.FILE_TENSOR_DTYPE, message)
        if self.data.shape != data_shape(self.dtype, self.shape):
            message = (
                f"{self.dtype.name} data of a tensor of shape {self.shape} have shape"
                f" {data_shape(self.dtype, self.shape)}, but found {self.data.shape}"
            )
            raise FormatError(Status.FILE_TENSOR_SHAPE, message)
        self.scales = _companion("scale", self.scale_layout, self.scales)
        self.offsets = _companion("offset", self.offset_layout, self.offsets)

    @property
    def rows(self) -> int:
        """Rows of a matrix, elements of a vector."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Columns of a matrix, 1 for a vector."""
        return self.shape[1] if len(self.shape) == 2 else 1

    @property
    def nbytes(self) -> int:
        """Bytes of data, scales and offsets, without padding."""
        companions = [part.nbytes for part in (self.scales, self.offsets) if part is not None]
        return self.data.nbytes + sum(companions)

    @classmethod
    def from_float(cls, array: npt.ArrayLike, dtype: DType = DType.F32) -> Tensor:
        """An f32 or f16 tensor, rounded to nearest, of an array of one or two dimensions."""
        values = np.asarray(array)
        with np.errstate(over="ignore"):  # infinite elements are refused by the writer, by name
            data = np.ascontiguousarray(values, numpy_type(dtype))
        return cls(dtype, values.shape, data)

    @classmethod
    def from_int8(
        cls, codes: npt.ArrayLike, scales: npt.ArrayLike, layout: Layout = Layout.ROW
    ) -> Tensor:
        """An i8 tensor of codes [rows, columns] from -127 to 127 and float32 scales."""
        data = np.ascontiguousarray(codes, np.int8)
        return cls(DType.I8, data.shape, data, layout, np.asarray(scales, "<f4"))

    @classmethod
    def from_bits(
        cls,
        bits: npt.ArrayLike,
        scales: npt.ArrayLike | None = None,
        scale_layout: Layout = Layout.NONE,
        offsets: npt.ArrayLike | None = None,
        offset_layout: Layout = Layout.NONE,
    ) -> Tensor:
        """A bit1 tensor of bool [rows, columns]: True is the code +1, False -1."""
        array = np.asarray(bits, bool)
        return cls(
            DType.BIT1,
            array.shape,
            pack_bits(array),
            scale_layout,
            None if scales is None else np.asarray(scales, "<f4"),
            offset_layout,
            None if offsets is None else np.asarray(offsets, "<f4"),
        )

    @classmethod
    def from_codes(
        cls,
        codes: npt.ArrayLike,
        scales: npt.ArrayLike | None = None,
        scale_layout: Layout = Layout.NONE,
        offsets: npt.ArrayLike | None = None,
        offset_layout: Layout = Layout.NONE,
    ) -> Tensor:
        """A tern tensor of codes [rows, columns], each -1, 0 or 1."""
        array = np.asarray(codes)
        if not np.isin(array, (-1, 0, 1)).all():
            message = "codes of a tern tensor are -1, 0 and 1, but others were found"
            raise FormatError(Status.FILE_VALUE, message)
        return cls(
            DType.TERN,
            array.shape,
            np.stack([pack_bits(array != 0), pack_bits(array > 0)]),
            scale_layout,
            None if scales is None else np.asarray(scales, "<f4"),
            offset_layout,
            None if offsets is None else np.asarray(offsets, "<f4"),
        )

    def to_float32(self) -> Floats:
        """The elements, float32 of `shape`: scale x code + offset, each operation rounded."""
        if self.dtype in (DType.F32, DType.F16, DType.I8):
            codes = self.data.astype(np.float32)
        elif self.dtype == DType.BIT1:
            codes = np.where(unpack_bits(self.data, self.columns), np.float32(1), np.float32(-1))
        else:
            nonzero, positive = (unpack_bits(plane, self.columns) for plane in self.data)
            codes = np.where(positive, np.float32(1), np.float32(-1)) * nonzero
        values = codes.reshape(self.rows, self.columns)
        if self.scales is not None:
            values = values * self._spread(self.scales, self.scale_layout)
        if self.offsets is not None:
            values = values + self._spread(self.offsets, self.offset_layout)
        return np.asarray(values.reshape(self.shape), np.float32)

    def _spread(self, values: Floats, layout: Layout) -> Floats:
        """Scales or offsets in a shape that broadcasts against [rows, columns]."""
        if layout == Layout.ROW_GROUP:
            values = np.repeat(values, self.rows // values.size)
        return values[None, :] if layout == Layout.COLUMN else values[:, None]


def _companion(title: str, layout: Layout, values: Array | None) -> Floats | None:
    """Scales or offsets as float32; present exactly with a layout, of one dimension."""
    if (values is None) != (layout == Layout.NONE):
        given = "absent" if values is None else "given"
        message = f"{title} layout is {Layout(layout).name}, but the {title}s are {given}"
        raise FormatError(Status.FILE_TENSOR_LAYOUT, message)
    if values is None:
        return None
    floats = np.ascontiguousarray(values, "<f4")
    if floats.ndim != 1 or floats.size == 0:
        message = f"{title}s have one dimension above 0, but the shape is {floats.shape}"
        raise FormatError(Status.FILE_TENSOR_LAYOUT, message)
    return floats


def numpy_type(dtype: DType) -> np.dtype[Any]:
    """The type of `Tensor.data`."""
    return np.dtype(_NUMPY_TYPES[dtype])


def data_shape(dtype: DType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of `Tensor.data` for a tensor of this dtype and shape."""
    words = words_per_row(shape[1] if len(shape) == 2 else 1)
    if dtype == DType.BIT1:
        return (shape[0], words)
    if dtype == DType.TERN:
        return (2, shape[0], words)
    return shape


def pack_bits(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """bool [rows, columns] to uint64 [rows, words]: column c is bit c mod 64 of word c div 64."""
    if bits.ndim != 2:
        message = f"bits are a matrix, but the shape is {bits.shape}"
        raise FormatError(Status.FILE_TENSOR_SHAPE, message)
    rows, columns = bits.shape
    octets = np.zeros((rows, 8 * words_per_row(columns)), np.uint8)
    octets[:, : -(-columns // 8)] = np.packbits(bits, axis=1, bitorder="little")
    return octets.view("<u8")


def unpack_bits(words: npt.NDArray[np.uint64], columns: int) -> npt.NDArray[np.bool_]:
    """The inverse of `pack_bits`: uint64 [rows, words] to bool [rows, columns]."""
    octets = np.ascontiguousarray(words, "<u8").view(np.uint8)
    return np.unpackbits(octets, axis=1, count=columns, bitorder="little").astype(bool)


@dataclass
class Quantizer:
    """Section 3.4. `clip` is (lo, hi) or None; floats are rounded to float32."""

    kind: int
    scope: int
    lo: int
    hi: int
    step: float = 1.0
    eps: float = 0.0
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self.step = as_float32(self.step)
        self.eps = as_float32(self.eps)
        if self.clip is not None:
            clip_lo, clip_hi = self.clip
            self.clip = (as_float32(clip_lo), as_float32(clip_hi))


@dataclass(eq=False)
class ModelFile:
    """Everything in a file. `tensors` are the slots of section 4 with their scales and offsets."""

    config: Config
    tensors: dict[str, Tensor]
    quantizers: dict[str, Quantizer] = field(default_factory=dict)
    vocabulary: list[bytes] | None = None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tables:
    """Everything of a file that precedes the data."""

    header: Header
    config: Config
    tensors: dict[str, TensorEntry]
    quantizers: dict[str, Quantizer]
    vocabulary: list[bytes]
    metadata: dict[str, str]
