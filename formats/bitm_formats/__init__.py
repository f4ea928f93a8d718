"""The `.bitm` file: its numbers, a strict reader, a writer. `formats/SPEC.md` is normative."""

from bitm_formats.crc32c import crc32c
from bitm_formats.errors import FormatError, Status
from bitm_formats.model import ModelFile, Quantizer, Tensor
from bitm_formats.reader import read
from bitm_formats.spec import (
    Activation,
    Config,
    ConfigFlag,
    DType,
    Head,
    Layout,
    Normalizer,
    Pooler,
    Problem,
    QuantizerFlag,
    QuantizerKind,
    Scope,
    Slot,
    SlotKind,
    Tokenizer,
    TokenizerFlag,
    places,
    slots,
)
from bitm_formats.writer import to_bytes, write

__all__ = [
    "Activation",
    "Config",
    "ConfigFlag",
    "DType",
    "FormatError",
    "Head",
    "Layout",
    "ModelFile",
    "Normalizer",
    "Pooler",
    "Problem",
    "Quantizer",
    "QuantizerFlag",
    "QuantizerKind",
    "Scope",
    "Slot",
    "SlotKind",
    "Status",
    "Tensor",
    "Tokenizer",
    "TokenizerFlag",
    "crc32c",
    "places",
    "read",
    "slots",
    "to_bytes",
    "write",
]
