"""Writes `.bitm` files: the same model gives the same bytes, and a broken model gives none."""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np

from bitm_formats.crc32c import crc32c
from bitm_formats.errors import FormatError, Status
from bitm_formats.model import ModelFile, Quantizer, Tensor
from bitm_formats.reader import check_data, check_opening
from bitm_formats.spec import (
    CONFIG,
    HEADER,
    HEADER_CRC_OFFSET,
    MAGIC,
    QUANTIZER,
    TENSOR,
    TENSOR_TABLE_OFFSET,
    VERSION,
    DType,
    QuantizerFlag,
    align64,
)

Progress = Optional[Callable[[int, int], None]]


def write(path: str | os.PathLike[str], model: ModelFile, progress: Progress = None) -> int:
    """Writes the file and returns its length in bytes.

    The model is checked by the rules of the reader first. The file appears under its name complete
    or not at all. `progress` is called with the bytes written so far and the length of the file.
    Raises FormatError where the model breaks a rule, OSError where the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        plan = _Plan.of(model)
    except FormatError as err:
        raise err.within(os.fspath(path)) from None
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            for chunk in plan.chunks():
                file.write(chunk)
                if progress is not None:
                    progress(file.tell(), plan.file_bytes)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:  # KeyboardInterrupt too: nothing half-written stays behind
        temporary.unlink(missing_ok=True)
        raise
    return plan.file_bytes


def to_bytes(model: ModelFile) -> bytes:
    """The bytes of the file. Raises FormatError where the model breaks a rule."""
    return b"".join(_Plan.of(model).chunks())


@dataclass(frozen=True)
class _Plan:
    """A checked file before it is written: what precedes the data, and the data of each tensor."""

    tables: bytes
    data: list[memoryview]
    file_bytes: int

    def chunks(self) -> Iterator[bytes | memoryview]:
        yield self.tables
        for part in self.data:
            yield part
            yield _padding(part.nbytes)

    @classmethod
    def of(cls, model: ModelFile) -> _Plan:
        """Lays the file out and has the reader check it, as if it were on disk already."""
        tensors = _with_companions(model.tensors)
        data = [_octets(tensor) for tensor in tensors.values()]
        quantizer_table = b"".join(
            _quantizer_entry(name, model.quantizers[name]) for name in sorted(model.quantizers)
        )
        vocabulary = _vocabulary_section(model.vocabulary or [])
        metadata = _metadata_section(model.metadata)
        data_offset = (
            TENSOR_TABLE_OFFSET
            + TENSOR.size * len(tensors)
            + len(quantizer_table)
            + align64(len(vocabulary))
            + align64(len(metadata))
        )
        tensor_table = b""
        place = data_offset
        for (name, tensor), octets in zip(tensors.items(), data):
            tensor_table += _tensor_entry(name, tensor, place, octets)
            place += align64(octets.nbytes)
        sections = (
            CONFIG.pack(vars(model.config)),
            tensor_table,
            quantizer_table,
            vocabulary + _padding(len(vocabulary)),
            metadata + _padding(len(metadata)),
        )
        body = b"".join(sections)
        header = HEADER.pack(
            {
                "magic": MAGIC,
                "version": VERSION,
                "header_bytes": HEADER.size,
                "file_bytes": place,
                "required_features": 0,
                "optional_features": 0,
                "n_tensors": len(tensors),
                "n_quantizers": len(model.quantizers),
                "n_tokens": len(model.vocabulary or []),
                "n_metadata": len(model.metadata),
                "vocabulary_bytes": len(vocabulary),
                "metadata_bytes": len(metadata),
                "data_offset": data_offset,
                "tables_crc32c": crc32c(body),
                "header_crc32c": 0,
            }
        )[:HEADER_CRC_OFFSET]
        tables = header + struct.pack("<I", crc32c(header)) + body
        checked = check_opening(tables, place)
        # The entries' checksums were made from these very data a moment ago.
        for entry, octets in zip(checked.tensors.values(), data):
            check_data(entry, octets, _padding(octets.nbytes))
        return cls(tables, data, place)


def _padding(n_bytes: int) -> bytes:
    """The zeros that follow n_bytes."""
    return bytes(align64(n_bytes) - n_bytes)


def _with_companions(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the file by name, in its order: scales and offsets become tensors."""
    complete = dict(tensors)
    for name, tensor in tensors.items():
        for part, values in (("scale", tensor.scales), ("offset", tensor.offsets)):
            if values is not None:
                companion = f"{name}.{part}"
                if companion in complete:
                    message = f"tensor {companion}: it is given twice, alone and within {name}"
                    raise FormatError(Status.FILE_TENSOR_UNKNOWN, message)
                complete[companion] = Tensor(DType.F32, values.shape, values)
    return {name: complete[name] for name in sorted(complete)}


def _octets(tensor: Tensor) -> memoryview:
    """The data of a tensor as bytes, without a copy where they are contiguous."""
    return np.ascontiguousarray(tensor.data).data.cast("B")


def _name_field(name: str) -> bytes:
    """The 64 bytes of a name; the reader's rules refuse what does not fit."""
    try:
        encoded = name.encode("ascii")
    except UnicodeEncodeError:
        encoded = b""
    if not 1 <= len(encoded) <= 63:
        message = f"{name!r} is no name of 1 to 63 characters of a-z 0-9 _ ."
        raise FormatError(Status.FILE_NAME, message)
    return encoded


def _tensor_entry(name: str, tensor: Tensor, place: int, octets: memoryview) -> bytes:
    return TENSOR.pack(
        {
            "name": _name_field(name),
            "dtype": tensor.dtype,
            "rank": len(tensor.shape),
            "rows": tensor.rows,
            "columns": tensor.columns,
            "scale_layout": tensor.scale_layout,
            "n_scales": 0 if tensor.scales is None else tensor.scales.size,
            "offset_layout": tensor.offset_layout,
            "n_offsets": 0 if tensor.offsets is None else tensor.offsets.size,
            "data_offset": place,
            "data_bytes": octets.nbytes,
            "crc32c": crc32c(octets),
        }
    )


def _quantizer_entry(name: str, quantizer: Quantizer) -> bytes:
    clip_lo, clip_hi = quantizer.clip or (0.0, 0.0)
    return QUANTIZER.pack(
        {
            "name": _name_field(name),
            "kind": quantizer.kind,
            "scope": quantizer.scope,
            "lo": quantizer.lo,
            "hi": quantizer.hi,
            "step": quantizer.step,
            "eps": quantizer.eps,
            "flags": 0 if quantizer.clip is None else QuantizerFlag.CLIP,
            "clip_lo": clip_lo,
            "clip_hi": clip_hi,
        }
    )


def _vocabulary_section(vocabulary: list[bytes]) -> bytes:
    """Section 3.5, without padding."""
    if not vocabulary:
        return b""
    offsets = np.zeros(len(vocabulary) + 1, np.int64)
    np.cumsum([len(token) for token in vocabulary], out=offsets[1:])
    if offsets[-1] >= 1 << 32:
        message = f"the vocabulary has {offsets[-1]} bytes of text"
        raise FormatError(Status.FILE_LIMIT, message)
    return offsets.astype("<u4").tobytes() + b"".join(vocabulary)


def _metadata_section(metadata: dict[str, str]) -> bytes:
    """Section 3.6, without padding."""
    try:
        entries = {key.encode(): value.encode() for key, value in metadata.items()}
    except UnicodeEncodeError as err:
        raise FormatError(Status.FILE_METADATA, f"metadata are not UTF-8: {err}") from None
    section = bytearray()
    for key in sorted(entries):
        section += struct.pack("<II", len(key), len(entries[key])) + key + entries[key]
    return bytes(section)
