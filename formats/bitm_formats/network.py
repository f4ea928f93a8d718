"""Step 12 of section 5: whether tensors and quantizers are those of section 4's network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bitm_formats.errors import FormatError, Status
from bitm_formats.model import Quantizer
from bitm_formats.spec import (
    Config,
    DType,
    Layout,
    Normalizer,
    Slot,
    SlotKind,
    TensorEntry,
    places,
    slots,
)

Entries = Mapping[str, TensorEntry]
Quantizers = Mapping[str, Quantizer]


def check_network(config: Config, entries: Entries, quantizers: Quantizers) -> None:
    """Raises FormatError with the first rule of section 4 that is broken."""
    known: set[str] = set()
    for slot in slots(config, entries):
        if slot.name in entries:
            known.add(slot.name)
            known.update(_check_slot(slot, config, entries, quantizers))
        elif not slot.optional:
            message = f"tensor {slot.name}: absent, expected shape {list(slot.shape)}"
            raise FormatError(Status.FILE_TENSOR_MISSING, message)
        elif slot.name == "mlm.decoder.weight" and slot.place in quantizers:
            # The word embeddings are the matrices of this branch.
            for name in ("embeddings.word.weight", "embeddings.word.second.weight"):
                if name in entries:
                    _forbid_columns(entries[name], slot.place)
    for name in entries:
        if name not in known:
            message = f"tensor {name}: this network has no such tensor"
            raise FormatError(Status.FILE_TENSOR_UNKNOWN, message)
    _check_places(config, entries, quantizers)


def _check_slot(
    slot: Slot, config: Config, entries: Entries, quantizers: Quantizers
) -> Iterator[str]:
    """Checks the tensor of a slot; yields the names of its scales and offsets."""
    entry = entries[slot.name]
    if slot.kind == SlotKind.MATRIX:
        dtypes = tuple(DType)
    elif slot.kind == SlotKind.FLOAT_MATRIX:
        dtypes = (DType.F32, DType.F16)
    else:
        dtypes = (DType.F32,)
    _check_shape_and_dtype(entry, slot.shape, dtypes)
    if slot.kind == SlotKind.MATRIX and slot.place in quantizers:
        _forbid_columns(entry, slot.place)
    for part, count in (("scale", entry.n_scales), ("offset", entry.n_offsets)):
        if count:
            companion = f"{slot.name}.{part}"
            if companion not in entries:
                message = f"tensor {companion}: absent, expected shape [{count}]"
                raise FormatError(Status.FILE_TENSOR_MISSING, message)
            _check_shape_and_dtype(entries[companion], (count,), (DType.F32,))
            yield companion
    if slot.kind == SlotKind.SHIFT and slot.place not in quantizers:
        message = f"tensor {slot.name}: it needs the quantizer {slot.place}, which is absent"
        raise FormatError(Status.FILE_QUANTIZER, message)
    if slot.kind == SlotKind.RMS_GAIN and config.rms_norm_eps == 0:
        message = f"tensor {slot.name}: it needs rms_norm_eps above 0, which is 0"
        raise FormatError(Status.FILE_CONFIG, message)


def _check_shape_and_dtype(
    entry: TensorEntry, shape: tuple[int, ...], dtypes: tuple[DType, ...]
) -> None:
    if entry.shape != shape:
        message = f"tensor {entry.name}: shape {list(entry.shape)}, expected {list(shape)}"
        raise FormatError(Status.FILE_TENSOR_SHAPE, message)
    if entry.dtype not in dtypes:
        expected = " or ".join(dtype.name for dtype in dtypes)
        message = f"tensor {entry.name}: dtype {DType(entry.dtype).name}, expected {expected}"
        raise FormatError(Status.FILE_TENSOR_DTYPE, message)


def _forbid_columns(entry: TensorEntry, place: str) -> None:
    if Layout.COLUMN in (entry.scale_layout, entry.offset_layout):
        message = f"tensor {entry.name}: layout column is not allowed with the quantizer {place}"
        raise FormatError(Status.FILE_TENSOR_LAYOUT, message)


def _check_places(config: Config, entries: Entries, quantizers: Quantizers) -> None:
    """Whether each quantizer names a place that can have its kind, and none is missing."""
    allowed = places(config, entries)
    for name, quantizer in quantizers.items():
        if quantizer.kind not in allowed.get(name, ()):
            message = f"quantizer {name}: this network has no place for it of kind {quantizer.kind}"
            raise FormatError(Status.FILE_QUANTIZER, message)
    if config.attention_normalizer == Normalizer.NONE:
        for n in range(config.n_layers):
            place = f"layers.{n}.attention.probabilities"
            if place not in quantizers:
                message = f"quantizer {place}: absent, but attention_normalizer is 0"
                raise FormatError(Status.FILE_QUANTIZER, message)
