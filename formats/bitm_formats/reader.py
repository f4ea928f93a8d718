"""The executable specification: reads a `.bitm` file in the steps of section 5 of SPEC.md.

Slow and strict. Every rule is checked where the section lists it, and the first broken one is
reported; `native/src/file.c` and `native/src/network.c` do the same, fast.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Union

import numpy as np

from bitm_formats.crc32c import Buffer, crc32c
from bitm_formats.errors import FormatError, Status
from bitm_formats.model import Array, ModelFile, Quantizer, Tables, Tensor, data_shape, numpy_type
from bitm_formats.network import check_network
from bitm_formats.rules import check_quantizer, config_rules, is_zero
from bitm_formats.spec import (
    CONFIG,
    CONFIG_OFFSET,
    HEADER,
    HEADER_CRC_OFFSET,
    LIMITS,
    MAGIC,
    MAX_ATTENTION_SIZE,
    MAX_COLUMNS,
    MAX_KEY_BYTES,
    MAX_NAME_BYTES,
    MAX_ROWS,
    MAX_TOKEN_BYTES,
    NAME_CHARACTERS,
    QUANTIZER,
    TENSOR,
    TENSOR_TABLE_OFFSET,
    VERSION,
    Config,
    ConfigFlag,
    DType,
    Head,
    Header,
    Layout,
    Pooler,
    QuantizerFlag,
    TensorEntry,
    TokenizerFlag,
    align64,
    data_bytes,
)

Source = Union[str, "os.PathLike[str]", bytes]


def read(source: Source, verify: bool = True) -> ModelFile:
    """The model of a file, given by its path or its bytes.

    With `verify`, all data are checked too (step 13). The arrays of the tensors are read-only views
    of the file's bytes. Raises FormatError with the first rule that is broken, OSError where the
    file cannot be read.
    """
    if isinstance(source, bytes):
        return _read_bytes(source, verify)
    content = Path(source).read_bytes()
    try:
        return _read_bytes(content, verify)
    except FormatError as err:
        raise err.within(os.fspath(source)) from None


def _read_bytes(content: bytes, verify: bool) -> ModelFile:
    tables = check_opening(content, len(content))
    if verify:
        check_all(tables, content)
    return _assemble(tables, content)


def check_opening(content: bytes, n_bytes: int) -> Tables:
    """Steps 1 to 12 for a file of n_bytes; `content` is at least what precedes the data."""
    header = _read_header(content, n_bytes)
    _check_tables(content, header)
    config = _read_config(content, header)
    tensors = _read_tensor_table(content, header)
    quantizers = _read_quantizer_table(content, header)
    vocabulary = _read_vocabulary(content, header)
    metadata = _read_metadata(content, header)
    check_network(config, tensors, quantizers)
    return Tables(header, config, tensors, quantizers, vocabulary, metadata)


def _read_header(content: bytes, n_bytes: int) -> Header:
    """Steps 1 to 6."""
    start = content[: len(MAGIC)]
    if start != MAGIC[: len(start)]:
        message = f"the file begins with {start.hex(' ')}, expected {MAGIC.hex(' ')}"
        raise FormatError(Status.FILE_MAGIC, message)
    if n_bytes < HEADER.size:
        message = f"the file has {n_bytes} bytes, its header alone {HEADER.size}"
        raise FormatError(Status.FILE_TRUNCATED, message)
    fields = HEADER.unpack(content, 0)
    if fields["version"] != VERSION:
        message = f"version is {fields['version']}, this reader knows {VERSION}"
        raise FormatError(Status.FILE_VERSION, message)
    found = crc32c(content[:HEADER_CRC_OFFSET])
    if found != fields["header_crc32c"]:
        message = f"the header's checksum is {found:08x}, expected {fields['header_crc32c']:08x}"
        raise FormatError(Status.FILE_HEADER_CHECKSUM, message)
    if fields["header_bytes"] != HEADER.size:
        message = f"header_bytes is {fields['header_bytes']}, expected {HEADER.size}"
        raise FormatError(Status.FILE_HEADER, message)
    if fields["required_features"] != 0:
        message = f"features {fields['required_features']:#x} are required, this reader knows none"
        raise FormatError(Status.FILE_FEATURE, message)
    _check_reserved_bytes("header", fields["reserved"])
    for name, limit in LIMITS.items():
        if fields[name] > limit:
            message = f"{name} is {fields[name]}, at most {limit} is allowed"
            raise FormatError(Status.FILE_LIMIT, message)
    header = Header(**{name: fields[name] for name in Header.__dataclass_fields__})
    _check_sections(header)
    if n_bytes < header.file_bytes:
        message = f"the file has {n_bytes} bytes, expected {header.file_bytes}"
        raise FormatError(Status.FILE_TRUNCATED, message)
    if n_bytes > header.file_bytes:
        message = f"the file has {n_bytes} bytes, expected {header.file_bytes}"
        raise FormatError(Status.FILE_TRAILING, message)
    return header


def _check_sections(header: Header) -> None:
    """The sizes of the parts before the data (step 6)."""
    for part, size, count, least in (
        ("vocabulary", header.vocabulary_bytes, header.n_tokens, 4 * (header.n_tokens + 1)),
        ("metadata", header.metadata_bytes, header.n_metadata, 9 * header.n_metadata),
    ):
        if (size < least) if count else (size > 0):
            message = f"{part}_bytes is {size}, which does not fit {count} entries"
            raise FormatError(Status.FILE_SECTION, message)
    data_offset = align64(header.metadata_offset + header.metadata_bytes)
    if header.data_offset != data_offset:
        message = f"data_offset is {header.data_offset}, expected {data_offset}"
        raise FormatError(Status.FILE_SECTION, message)
    if header.file_bytes < data_offset or header.file_bytes % 64:
        message = f"file_bytes is {header.file_bytes}, expected a multiple of 64 from {data_offset}"
        raise FormatError(Status.FILE_SECTION, message)


def _check_reserved_bytes(part: str, reserved: bytes) -> None:
    if any(reserved):
        raise FormatError(Status.FILE_RESERVED, f"{part}: reserved bytes are not 0")


def _check_reserved_bits(part: str, name: str, value: int, known: int) -> None:
    if value & ~known:
        message = f"{part}: {name} has the reserved bits {value & ~known:#x}"
        raise FormatError(Status.FILE_RESERVED, message)


def _check_tables(content: bytes, header: Header) -> None:
    """Step 7."""
    found = crc32c(content[CONFIG_OFFSET : header.data_offset])
    if found != header.tables_crc32c:
        message = f"the tables' checksum is {found:08x}, expected {header.tables_crc32c:08x}"
        raise FormatError(Status.FILE_TABLES_CHECKSUM, message)
    vocabulary_end = header.vocabulary_offset + header.vocabulary_bytes
    metadata_end = header.metadata_offset + header.metadata_bytes
    if any(content[vocabulary_end : header.metadata_offset]):
        raise FormatError(Status.FILE_PADDING, "bytes after the vocabulary are not 0")
    if any(content[metadata_end : header.data_offset]):
        raise FormatError(Status.FILE_PADDING, "bytes after the metadata are not 0")


def _read_config(content: bytes, header: Header) -> Config:
    """Step 8."""
    fields = CONFIG.unpack(content, CONFIG_OFFSET)
    reserved = fields.pop("reserved")
    config = Config(**fields)
    rules = {rule.field: rule for rule in config_rules(config, header.n_tokens)}
    known_flags = {"flags": sum(ConfigFlag), "tokenizer_flags": sum(TokenizerFlag)}
    for name, value in fields.items():
        if name in known_flags:
            _check_reserved_bits("configuration", name, value, known_flags[name])
        if name in rules and not rules[name].holds:
            message = f"configuration: {name} is {value}, expected {rules[name].expected}"
            raise FormatError(Status.FILE_CONFIG, message)
    _check_reserved_bytes("configuration", reserved)
    if config.attention_size > MAX_ATTENTION_SIZE:
        message = f"n_heads x head_size is {config.attention_size}, above {MAX_ATTENTION_SIZE}"
        raise FormatError(Status.FILE_CONFIG, f"configuration: {message}")
    needs_pooler = config.head in (Head.MASKED_LM_NEXT_SENTENCE, Head.CLASSIFIER)
    if needs_pooler and config.pooler == Pooler.NONE:
        message = f"configuration: head {config.head} needs a pooler, but pooler is 0"
        raise FormatError(Status.FILE_CONFIG, message)
    if header.n_tokens > config.vocab_size:
        message = f"vocab_size is {config.vocab_size}, below n_tokens {header.n_tokens}"
        raise FormatError(Status.FILE_CONFIG, f"configuration: {message}")
    return config


def _read_name(table: str, index: int, field: bytes) -> str:
    """A name of 1 to 63 characters, then zeros (steps 9 and 10)."""
    name = field.rstrip(b"\0")
    if not 1 <= len(name) <= MAX_NAME_BYTES or not NAME_CHARACTERS.issuperset(name):
        message = f"{table}, entry {index}: {name!r} is no name of 1 to 63 of a-z 0-9 _ ."
        raise FormatError(Status.FILE_NAME, message)
    return name.decode("ascii")


def _read_tensor_table(content: bytes, header: Header) -> dict[str, TensorEntry]:
    """Step 9."""
    entries: dict[str, TensorEntry] = {}
    previous = ""
    place = header.data_offset
    for index in range(header.n_tensors):
        fields = TENSOR.unpack(content, TENSOR_TABLE_OFFSET + TENSOR.size * index)
        reserved = fields.pop("reserved")
        name = _read_name("tensor table", index, fields.pop("name"))
        if name <= previous:
            message = f"tensor table: {name} comes after {previous}"
            raise FormatError(Status.FILE_TENSOR_ORDER, message)
        entry = TensorEntry(name, **fields)
        _check_entry(entry, place, header.file_bytes)
        _check_reserved_bytes(f"tensor {name}", reserved)
        entries[name] = entry
        previous = name
        place = align64(entry.data_offset + entry.data_bytes)
    if place != header.file_bytes:
        message = f"the data end at {place}, the file at {header.file_bytes}"
        raise FormatError(Status.FILE_TENSOR_PLACE, message)
    return entries


def _check_entry(entry: TensorEntry, place: int, file_bytes: int) -> None:
    """Step 9 for the numbers of one entry whose data belong at offset `place`."""
    title = f"tensor {entry.name}"
    if entry.dtype not in list(DType):
        raise FormatError(Status.FILE_TENSOR_DTYPE, f"{title}: dtype {entry.dtype} is unknown")
    max_columns = MAX_COLUMNS if entry.rank == 2 else 1
    if (
        entry.rank not in (1, 2)
        or not 1 <= entry.rows <= MAX_ROWS
        or not 1 <= entry.columns <= max_columns
    ):
        message = f"rank {entry.rank}, {entry.rows} rows, {entry.columns} columns are no shape"
        raise FormatError(Status.FILE_TENSOR_SHAPE, f"{title}: {message}")
    _check_layout(entry, "scale", entry.scale_layout, entry.n_scales)
    _check_layout(entry, "offset", entry.offset_layout, entry.n_offsets)
    size = data_bytes(DType(entry.dtype), entry.rows, entry.columns)
    if entry.data_offset != place or entry.data_bytes != size:
        message = f"{entry.data_bytes} bytes at {entry.data_offset}, expected {size} at {place}"
        raise FormatError(Status.FILE_TENSOR_PLACE, f"{title}: {message}")
    if place + size > file_bytes:
        message = f"{title}: its data end at {place + size}, the file at {file_bytes}"
        raise FormatError(Status.FILE_TENSOR_PLACE, message)


def _check_layout(entry: TensorEntry, part: str, layout: int, count: int) -> None:
    """Whether a layout of scales or offsets is counted right and allowed for the dtype."""
    title = f"tensor {entry.name}"
    if layout == Layout.ROW_GROUP:
        count_fits = 1 < count < entry.rows and entry.rows % count == 0
    else:
        counts = {
            Layout.NONE: 0,
            Layout.TENSOR: 1,
            Layout.ROW: entry.rows,
            Layout.COLUMN: entry.columns,
        }
        count_fits = layout in list(Layout) and count == counts[Layout(layout)]
    if not count_fits:
        message = f"{count} {part}s in layout {layout} do not fit the shape {list(entry.shape)}"
        raise FormatError(Status.FILE_TENSOR_LAYOUT, f"{title}: {message}")
    if part == "scale" and entry.dtype == DType.I8:
        allowed = layout != Layout.NONE
    else:
        allowed = layout == Layout.NONE or entry.dtype in (DType.BIT1, DType.TERN)
    if not allowed:
        message = f"{part} layout {layout} is not allowed for {DType(entry.dtype).name}"
        raise FormatError(Status.FILE_TENSOR_LAYOUT, f"{title}: {message}")


def _read_quantizer_table(content: bytes, header: Header) -> dict[str, Quantizer]:
    """Step 10."""
    quantizers: dict[str, Quantizer] = {}
    previous = ""
    for index in range(header.n_quantizers):
        fields = QUANTIZER.unpack(content, header.quantizer_table_offset + QUANTIZER.size * index)
        name = _read_name("quantizer table", index, fields["name"])
        if name <= previous:
            message = f"quantizer table: {name} comes after {previous}"
            raise FormatError(Status.FILE_QUANTIZER, message)
        has_clip = fields["flags"] & QuantizerFlag.CLIP
        clip = (fields["clip_lo"], fields["clip_hi"])
        numbers = {key: fields[key] for key in ("kind", "scope", "lo", "hi", "step", "eps")}
        quantizer = Quantizer(**numbers, clip=clip if has_clip else None)
        check_quantizer(name, quantizer)
        if not has_clip and not all(map(is_zero, clip)):
            message = f"quantizer {name}: clip is {clip} without the flag, expected 0"
            raise FormatError(Status.FILE_QUANTIZER, message)
        _check_reserved_bits(f"quantizer {name}", "flags", fields["flags"], sum(QuantizerFlag))
        _check_reserved_bytes(f"quantizer {name}", fields["reserved"])
        quantizers[name] = quantizer
        previous = name
    return quantizers


def _read_vocabulary(content: bytes, header: Header) -> list[bytes]:
    """Step 11, section 3.5."""
    if header.n_tokens == 0:
        return []
    count = header.n_tokens + 1
    offsets = struct.unpack_from(f"<{count}I", content, header.vocabulary_offset)
    text_offset = header.vocabulary_offset + 4 * count
    text_bytes = header.vocabulary_bytes - 4 * count
    text = content[text_offset : text_offset + text_bytes]
    if offsets[0] != 0 or list(offsets) != sorted(offsets) or offsets[-1] != text_bytes:
        message = f"the offsets do not ascend from 0 to {text_bytes}"
        raise FormatError(Status.FILE_VOCABULARY, f"vocabulary: {message}")
    vocabulary = [text[start:end] for start, end in zip(offsets, offsets[1:])]
    for token, spelling in enumerate(vocabulary):
        if len(spelling) > MAX_TOKEN_BYTES:
            message = f"token {token} has {len(spelling)} bytes, above {MAX_TOKEN_BYTES}"
            raise FormatError(Status.FILE_VOCABULARY, f"vocabulary: {message}")
        _decode(spelling, Status.FILE_VOCABULARY, f"vocabulary: token {token}")
    return vocabulary


def _decode(text: bytes, status: Status, title: str) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as err:
        raise FormatError(status, f"{title} is not UTF-8: {err}") from None


def _read_metadata(content: bytes, header: Header) -> dict[str, str]:
    """Step 11, section 3.6."""
    section = content[header.metadata_offset : header.metadata_offset + header.metadata_bytes]
    metadata: dict[str, str] = {}
    previous = b""
    end = 0
    for index in range(header.n_metadata):
        title = f"metadata, entry {index}"
        key_start = end + 8
        if key_start > len(section):
            raise FormatError(Status.FILE_METADATA, f"{title}: it is past the section's end")
        key_bytes, value_bytes = struct.unpack_from("<II", section, end)
        value_start = key_start + key_bytes
        end = value_start + value_bytes
        if not 1 <= key_bytes <= MAX_KEY_BYTES or end > len(section):
            message = f"a key of {key_bytes} and a value of {value_bytes} bytes do not fit"
            raise FormatError(Status.FILE_METADATA, f"{title}: {message}")
        key = section[key_start:value_start]
        if key <= previous:
            message = f"{title}: key {key!r} comes after {previous!r}"
            raise FormatError(Status.FILE_METADATA, message)
        name = _decode(key, Status.FILE_METADATA, f"{title}: the key")
        value = _decode(section[value_start:end], Status.FILE_METADATA, f"{title}: the value")
        metadata[name] = value
        previous = key
    if end != len(section):
        message = f"metadata: the entries end at byte {end} of {len(section)}"
        raise FormatError(Status.FILE_METADATA, message)
    return metadata


def check_all(tables: Tables, content: bytes) -> None:
    """Step 13 for a file that passed steps 1 to 12."""
    for entry in tables.tensors.values():
        end = entry.data_offset + entry.data_bytes
        data = content[entry.data_offset : end]
        _check_checksum(entry, data)
        check_data(entry, data, content[end : align64(end)])


def _check_checksum(entry: TensorEntry, data: Buffer) -> None:
    found = crc32c(data)
    if found != entry.crc32c:
        message = f"the data's checksum is {found:08x}, expected {entry.crc32c:08x}"
        raise FormatError(Status.FILE_TENSOR_CHECKSUM, f"tensor {entry.name}: {message}")


def check_data(entry: TensorEntry, data: Buffer, padding: bytes) -> None:
    """Step 13 after the checksum, for one tensor: its data, and the bytes from their end to a
    multiple of 64."""
    title = f"tensor {entry.name}"
    dtype = DType(entry.dtype)
    elements = _elements(entry, data)
    if dtype in (DType.BIT1, DType.TERN):
        last_bit = np.uint64((entry.columns - 1) % 64)
        if (elements[..., -1] >> last_bit >> np.uint64(1)).any():
            message = f"{title}: a bit past the last of {entry.columns} columns is 1"
            raise FormatError(Status.FILE_PADDING, message)
    if dtype == DType.TERN:
        nonzero, sign = elements
        if (sign & ~nonzero).any():
            message = f"{title}: a sign bit is 1 where the nonzero bit is 0"
            raise FormatError(Status.FILE_PADDING, message)
    if dtype == DType.I8 and (elements == -128).any():
        raise FormatError(Status.FILE_PADDING, f"{title}: a code is -128, the least is -127")
    if any(padding):
        raise FormatError(Status.FILE_PADDING, f"{title}: bytes after the data are not 0")
    if dtype in (DType.F32, DType.F16) and not np.isfinite(elements).all():
        raise FormatError(Status.FILE_VALUE, f"{title}: an element is infinite or not a number")


def _elements(entry: TensorEntry, data: Buffer) -> Array:
    """The data as the array of a `Tensor`, read-only and not copied."""
    dtype = DType(entry.dtype)
    return np.frombuffer(data, numpy_type(dtype)).reshape(data_shape(dtype, entry.shape))


def _assemble(tables: Tables, content: bytes) -> ModelFile:
    """The model of a checked file: scales and offsets join the tensors that they belong to."""
    view = memoryview(content)
    entries = tables.tensors
    arrays = {
        name: _elements(entry, view[entry.data_offset : entry.data_offset + entry.data_bytes])
        for name, entry in entries.items()
    }
    scales = {name: f"{name}.scale" for name, entry in entries.items() if entry.n_scales}
    offsets = {name: f"{name}.offset" for name, entry in entries.items() if entry.n_offsets}
    companions = {*scales.values(), *offsets.values()}
    tensors = {
        name: Tensor(
            DType(entry.dtype),
            entry.shape,
            arrays[name],
            Layout(entry.scale_layout),
            arrays[scales[name]] if name in scales else None,
            Layout(entry.offset_layout),
            arrays[offsets[name]] if name in offsets else None,
        )
        for name, entry in entries.items()
        if name not in companions
    }
    vocabulary = tables.vocabulary or None
    return ModelFile(tables.config, tensors, tables.quantizers, vocabulary, tables.metadata)
