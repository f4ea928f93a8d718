"""Numbers, records and slots of a `.bitm` file: sections 2, 3, 4 and 6 of SPEC.md."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import Any

import numpy as np

from bitm_formats.errors import FormatError, Status

MAGIC = b"\x89BIT\r\n\x1a\n"
VERSION = 1
ALIGNMENT = 64
ARCHITECTURE_BERT = 1


class DType(IntEnum):
    """How the elements of a tensor are stored (section 3.3)."""

    F32 = 1
    F16 = 2
    I8 = 3
    BIT1 = 4
    TERN = 5


class Layout(IntEnum):
    """Which elements of a matrix share a scale or an offset."""

    NONE = 0
    TENSOR = 1
    ROW_GROUP = 2
    ROW = 3
    COLUMN = 4


class QuantizerKind(IntEnum):
    """How activations become codes (section 3.4)."""

    SIGN = 1
    INT = 2
    INT_MIN = 3
    DYN_SYM = 4
    DYN_ASYM = 5
    BOOL = 6


class Scope(IntEnum):
    """Over which values a dynamic quantizer takes its least and greatest."""

    STATIC = 0
    TOKEN = 1
    SEQUENCE = 2


class Activation(IntEnum):
    """Activation functions of the intermediate layer and of the masked LM (section 3.2)."""

    GELU = 1
    GELU_TANH = 2
    RELU = 3
    SWISH = 4
    MISH = 5


class Normalizer(IntEnum):
    """What makes attention probabilities of scores."""

    NONE = 0
    SOFTMAX = 1


class Pooler(IntEnum):
    """What becomes of the first token's hidden state."""

    NONE = 0
    TANH = 1
    NORM_SKIP = 2


class Head(IntEnum):
    """What the model predicts."""

    NONE = 0
    MASKED_LM = 1
    MASKED_LM_NEXT_SENTENCE = 2
    CLASSIFIER = 3
    TOKEN_CLASSIFIER = 4
    QUESTION_ANSWERING = 5


class Problem(IntEnum):
    """How the logits of a classifier are read."""

    NONE = 0
    REGRESSION = 1
    ONE_LABEL = 2
    SEVERAL_LABELS = 3
    ONE_LOGIT = 4


class Tokenizer(IntEnum):
    """How text becomes tokens."""

    NONE = 0
    WORDPIECE = 1


class ConfigFlag(IntFlag):
    """Bits of `Config.flags`."""

    PROBABILITY_MIN_ZERO = 1


class TokenizerFlag(IntFlag):
    """Bits of `Config.tokenizer_flags`."""

    LOWERCASE = 1
    STRIP_ACCENTS = 2
    SPLIT_CJK = 4


class QuantizerFlag(IntFlag):
    """Bits of a quantizer's flags."""

    CLIP = 1


def as_float32(value: float) -> float:
    """The float32 nearest to `value` (infinite where there is none)."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


class Record:
    """The layout of a record: names and struct codes of its fields, in order and without gaps."""

    def __init__(self, title: str, status: Status, fields: tuple[tuple[str, str], ...]) -> None:
        self.title = title
        self.status = status
        self.fields = fields
        self._struct = struct.Struct("<" + "".join(code for _, code in fields))
        self.size = self._struct.size
        offset = 0
        self.offsets: dict[str, int] = {}
        for name, code in fields:
            self.offsets[name] = offset
            offset += struct.calcsize("<" + code)

    def unpack(self, data: bytes, start: int) -> dict[str, Any]:
        """The fields of the record at offset `start` of `data`."""
        values = self._struct.unpack_from(data, start)
        return {name: value for (name, _), value in zip(self.fields, values)}

    def pack(self, values: Mapping[str, Any]) -> bytes:
        """The record's bytes; fields of bytes that `values` lacks (reserved, ignored) are 0.

        Raises FormatError with the record's status where a number does not fit its field.
        """
        packed = bytearray()
        for name, code in self.fields:
            value = values.get(name, b"") if code.endswith("s") else values[name]
            try:
                packed += struct.pack("<" + code, value)
            except (struct.error, OverflowError) as err:
                message = f"{self.title}: {name} is {value!r}, which does not fit its field: {err}"
                raise FormatError(self.status, message) from None
        return bytes(packed)


HEADER = Record(
    "header",
    Status.FILE_HEADER,
    (
        ("magic", "8s"),
        ("version", "I"),
        ("header_bytes", "I"),
        ("file_bytes", "Q"),
        ("required_features", "Q"),
        ("optional_features", "Q"),
        ("n_tensors", "I"),
        ("n_quantizers", "I"),
        ("n_tokens", "I"),
        ("n_metadata", "I"),
        ("vocabulary_bytes", "Q"),
        ("metadata_bytes", "Q"),
        ("data_offset", "Q"),
        ("reserved", "24s"),
        ("ignored", "16s"),
        ("tables_crc32c", "I"),
        ("header_crc32c", "I"),
    ),
)

CONFIG = Record(
    "configuration",
    Status.FILE_CONFIG,
    (
        ("architecture", "I"),
        ("vocab_size", "I"),
        ("hidden_size", "I"),
        ("n_layers", "I"),
        ("n_heads", "I"),
        ("head_size", "I"),
        ("intermediate_size", "I"),
        ("max_positions", "I"),
        ("n_token_types", "I"),
        ("hidden_activation", "I"),
        ("layer_norm_eps", "f"),
        ("attention_normalizer", "I"),
        ("score_scale", "f"),
        ("score_rank", "I"),
        ("value_term", "I"),
        ("rms_norm_eps", "f"),
        ("pooler", "I"),
        ("pooler_norm_eps", "f"),
        ("head", "I"),
        ("n_labels", "I"),
        ("problem", "I"),
        ("head_activation", "I"),
        ("head_norm_eps", "f"),
        ("flags", "I"),
        ("tokenizer", "I"),
        ("tokenizer_flags", "I"),
        ("max_word_chars", "I"),
        ("unk_id", "i"),
        ("cls_id", "i"),
        ("sep_id", "i"),
        ("pad_id", "i"),
        ("mask_id", "i"),
        ("reserved", "64s"),
    ),
)


@dataclass
class Config:
    """Section 3.2, field by field. Floats are rounded to float32, as the file keeps them."""

    vocab_size: int
    hidden_size: int
    n_layers: int
    n_heads: int
    head_size: int
    intermediate_size: int
    max_positions: int
    score_scale: float
    n_token_types: int = 2
    hidden_activation: int = Activation.GELU
    layer_norm_eps: float = 1e-12
    attention_normalizer: int = Normalizer.SOFTMAX
    score_rank: int = 0
    value_term: int = 0
    rms_norm_eps: float = 0.0
    pooler: int = Pooler.NONE
    pooler_norm_eps: float = 0.0
    head: int = Head.NONE
    n_labels: int = 0
    problem: int = Problem.NONE
    head_activation: int = 0
    head_norm_eps: float = 0.0
    flags: int = 0
    tokenizer: int = Tokenizer.NONE
    tokenizer_flags: int = 0
    max_word_chars: int = 0
    unk_id: int = -1
    cls_id: int = -1
    sep_id: int = -1
    pad_id: int = -1
    mask_id: int = -1
    architecture: int = ARCHITECTURE_BERT

    def __post_init__(self) -> None:
        for name, code in CONFIG.fields:
            if code == "f":
                setattr(self, name, as_float32(getattr(self, name)))

    @property
    def attention_size(self) -> int:
        """Rows of query, key and value."""
        return self.n_heads * self.head_size


TENSOR = Record(
    "tensor table",
    Status.FILE_TENSOR_SHAPE,
    (
        ("name", "64s"),
        ("dtype", "I"),
        ("rank", "I"),
        ("rows", "I"),
        ("columns", "I"),
        ("scale_layout", "I"),
        ("n_scales", "I"),
        ("offset_layout", "I"),
        ("n_offsets", "I"),
        ("data_offset", "Q"),
        ("data_bytes", "Q"),
        ("crc32c", "I"),
        ("reserved", "12s"),
    ),
)

QUANTIZER = Record(
    "quantizer table",
    Status.FILE_QUANTIZER,
    (
        ("name", "64s"),
        ("kind", "I"),
        ("scope", "I"),
        ("lo", "i"),
        ("hi", "i"),
        ("step", "f"),
        ("eps", "f"),
        ("flags", "I"),
        ("clip_lo", "f"),
        ("clip_hi", "f"),
        ("reserved", "28s"),
    ),
)

CONFIG_OFFSET = HEADER.size
TENSOR_TABLE_OFFSET = CONFIG_OFFSET + CONFIG.size
TABLES_CRC_OFFSET = HEADER.offsets["tables_crc32c"]
HEADER_CRC_OFFSET = HEADER.offsets["header_crc32c"]

# Section 6, in its order; each is a field of the header.
LIMITS = {
    "file_bytes": 1 << 40,
    "n_tensors": 65_536,
    "n_quantizers": 65_536,
    "n_tokens": 1 << 24,
    "n_metadata": 65_536,
    "vocabulary_bytes": 1 << 28,
    "metadata_bytes": 1 << 24,
}
MAX_ROWS = 1 << 24
MAX_COLUMNS = 65_536
MAX_ATTENTION_SIZE = 16_384
MAX_TOKEN_BYTES = 1_024
MAX_KEY_BYTES = 255
NAME_CHARACTERS = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_.")
MAX_NAME_BYTES = 63


@dataclass(frozen=True)
class Header:
    """Section 3.1, without what is the same in every file."""

    file_bytes: int
    n_tensors: int
    n_quantizers: int
    n_tokens: int
    n_metadata: int
    vocabulary_bytes: int
    metadata_bytes: int
    data_offset: int
    tables_crc32c: int

    @property
    def quantizer_table_offset(self) -> int:
        """Where the tensor table ends."""
        return TENSOR_TABLE_OFFSET + TENSOR.size * self.n_tensors

    @property
    def vocabulary_offset(self) -> int:
        """Where the quantizer table ends."""
        return self.quantizer_table_offset + QUANTIZER.size * self.n_quantizers

    @property
    def metadata_offset(self) -> int:
        """The aligned end of the vocabulary."""
        return align64(self.vocabulary_offset + self.vocabulary_bytes)


@dataclass(frozen=True)
class TensorEntry:
    """Section 3.3: a row of the tensor table."""

    name: str
    dtype: int
    rank: int
    rows: int
    columns: int
    scale_layout: int
    n_scales: int
    offset_layout: int
    n_offsets: int
    data_offset: int
    data_bytes: int
    crc32c: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns) or (n,)."""
        return (self.rows, self.columns) if self.rank == 2 else (self.rows,)


def align64(n: int) -> int:
    """The smallest multiple of 64 that is not below n."""
    return -(-n // ALIGNMENT) * ALIGNMENT


def words_per_row(columns: int) -> int:
    """64-bit words of a row of bits."""
    return -(-columns // 64)


def data_bytes(dtype: DType, rows: int, columns: int) -> int:
    """Bytes of a tensor's data, without padding (section 3.3)."""
    if dtype == DType.BIT1:
        return 8 * rows * words_per_row(columns)
    if dtype == DType.TERN:
        return 16 * rows * words_per_row(columns)
    return {DType.F32: 4, DType.F16: 2, DType.I8: 1}[dtype] * rows * columns


class SlotKind(Enum):
    """What a slot takes."""

    MATRIX = "matrix"  # rank 2, any dtype
    FLOAT_MATRIX = "float matrix"  # rank 2, f32 or f16
    VECTOR = "vector"  # rank 1, f32
    SHIFT = "shift"  # a vector that needs the quantizer of its place
    RMS_GAIN = "rms gain"  # a vector that needs rms_norm_eps


@dataclass(frozen=True)
class Slot:
    """One tensor of section 4. `place` names the quantizer that its branch of a linear can have."""

    name: str
    kind: SlotKind
    shape: tuple[int, ...]
    optional: bool = False
    place: str = ""


def slots(config: Config, present: Collection[str]) -> Iterator[Slot]:
    """The slots of section 4, in order; `.scale` and `.offset` follow from the tensors' layouts.

    `present` are names of tensors: a second branch brings its optional vectors where its matrix is.
    """
    hidden, attention = config.hidden_size, config.attention_size
    matrix = SlotKind.MATRIX
    yield Slot("embeddings.word.weight", matrix, (config.vocab_size, hidden))
    yield Slot("embeddings.word.second.weight", matrix, (config.vocab_size, hidden), optional=True)
    yield Slot("embeddings.position.weight", matrix, (config.max_positions, hidden))
    yield Slot("embeddings.token_type.weight", matrix, (config.n_token_types, hidden))
    yield from _norm("embeddings.norm", hidden)
    for n in range(config.n_layers):
        layer = f"layers.{n}"
        for name in ("query", "key", "value"):
            yield from _linear(f"{layer}.{name}", attention, hidden, present)
        if config.score_rank > 0:
            for name in ("query_p", "query_m", "key_p", "key_m"):
                yield from _float_linear(f"{layer}.low_rank.{name}", config.score_rank, hidden)
        if config.value_term:
            yield from _float_linear(f"{layer}.value_term", 1, hidden)
        yield from _linear(f"{layer}.attention_output", hidden, attention, present)
        yield from _norm(f"{layer}.attention_norm", hidden)
        yield from _linear(f"{layer}.intermediate", config.intermediate_size, hidden, present)
        yield from _linear(f"{layer}.output", hidden, config.intermediate_size, present)
        yield from _norm(f"{layer}.output_norm", hidden)
    if config.pooler != Pooler.NONE:
        yield from _linear("pooler", hidden, hidden, present)
    if config.pooler == Pooler.NORM_SKIP:
        yield from _norm("pooler.norm", hidden)
    if config.head in (Head.MASKED_LM, Head.MASKED_LM_NEXT_SENTENCE):
        yield from _linear("mlm.transform", hidden, hidden, present)
        yield from _norm("mlm.norm", hidden)
        yield from _first_branch("mlm.decoder", config.vocab_size, hidden, weight_optional=True)
    if config.head == Head.MASKED_LM_NEXT_SENTENCE:
        yield from _linear("next_sentence", 2, hidden, present)
    if config.head in (Head.CLASSIFIER, Head.TOKEN_CLASSIFIER, Head.QUESTION_ANSWERING):
        yield from _linear("classifier", config.n_labels, hidden, present)


def _norm(name: str, n: int) -> Iterator[Slot]:
    yield Slot(f"{name}.gain", SlotKind.VECTOR, (n,))
    yield Slot(f"{name}.bias", SlotKind.VECTOR, (n,))


def _linear(name: str, rows: int, columns: int, present: Collection[str]) -> Iterator[Slot]:
    yield from _first_branch(name, rows, columns)
    second = f"{name}.second"
    yield Slot(f"{second}.weight", SlotKind.MATRIX, (rows, columns), optional=True, place=second)
    if f"{second}.weight" in present:
        yield Slot(f"{second}.bias", SlotKind.VECTOR, (rows,), optional=True)
        yield Slot(f"{second}.shift", SlotKind.SHIFT, (columns,), optional=True, place=second)


def _first_branch(
    name: str, rows: int, columns: int, weight_optional: bool = False
) -> Iterator[Slot]:
    yield Slot(f"{name}.weight", SlotKind.MATRIX, (rows, columns), weight_optional, place=name)
    yield Slot(f"{name}.bias", SlotKind.VECTOR, (rows,), optional=True)
    yield Slot(f"{name}.shift", SlotKind.SHIFT, (columns,), optional=True, place=name)
    yield Slot(f"{name}.rms.gain", SlotKind.RMS_GAIN, (columns,), optional=True)


def _float_linear(name: str, rows: int, columns: int) -> Iterator[Slot]:
    yield Slot(f"{name}.weight", SlotKind.FLOAT_MATRIX, (rows, columns))
    yield Slot(f"{name}.bias", SlotKind.VECTOR, (rows,), optional=True)


def places(config: Config, present: Collection[str]) -> dict[str, frozenset[QuantizerKind]]:
    """Every place that can have a quantizer, and the kinds allowed there (section 4)."""
    linear_kinds = frozenset(QuantizerKind) - {QuantizerKind.BOOL}
    allowed: dict[str, frozenset[QuantizerKind]] = {}
    for slot in slots(config, present):
        absent_branch = slot.place.endswith(".second") and slot.name not in present
        if slot.kind == SlotKind.MATRIX and slot.place and not absent_branch:
            allowed[slot.place] = linear_kinds
    with_minimum = {QuantizerKind.INT_MIN, QuantizerKind.DYN_ASYM}
    unnormalized = config.attention_normalizer == Normalizer.NONE
    for n in range(config.n_layers):
        attention = f"layers.{n}.attention"
        allowed[f"{attention}.query"] = linear_kinds - with_minimum
        allowed[f"{attention}.key"] = linear_kinds - with_minimum
        allowed[f"{attention}.value"] = linear_kinds
        allowed[f"{attention}.probabilities"] = (
            frozenset(QuantizerKind) if unnormalized else linear_kinds
        )
    return allowed
