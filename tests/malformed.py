"""Malformed `.bitm` files, one for each way to break a rule of section 5 of formats/SPEC.md.

`cases()` lists them; fuzzers take `full_model()` as a start and `repair()` to get mutants past the
checksums.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from typing import Any, Callable, NamedTuple

import numpy as np

from bitm_formats import (
    Config,
    DType,
    Head,
    Layout,
    ModelFile,
    Normalizer,
    Pooler,
    Quantizer,
    QuantizerKind,
    Scope,
    SlotKind,
    Tensor,
    Tokenizer,
    crc32c,
    slots,
    to_bytes,
)
from bitm_formats.spec import (
    CONFIG,
    CONFIG_OFFSET,
    HEADER,
    HEADER_CRC_OFFSET,
    LIMITS,
    MAGIC,
    QUANTIZER,
    TABLES_CRC_OFFSET,
    TENSOR,
    TENSOR_TABLE_OFFSET,
    align64,
)

NAN, INFINITY = float("nan"), float("inf")

_checksum = lru_cache(maxsize=1_000)(crc32c)  # most tensors stay as they are


class Case(NamedTuple):
    """A file and the status that both readers give it; "OK" where it looks worse than it is.

    With `needs_verify`, opening succeeds and only verifying gives the status.
    """

    name: str
    content: bytes
    status: str
    needs_verify: bool = False


def full_model() -> ModelFile:
    """A small model with something of everything that the format has."""
    config = Config(
        vocab_size=9,
        hidden_size=70,
        n_layers=2,
        n_heads=2,
        head_size=5,
        intermediate_size=67,
        max_positions=4,
        score_scale=5**-0.5,
        attention_normalizer=Normalizer.NONE,
        score_rank=2,
        value_term=1,
        rms_norm_eps=1e-6,
        pooler=Pooler.NORM_SKIP,
        pooler_norm_eps=1e-12,
        head=Head.MASKED_LM_NEXT_SENTENCE,
        head_activation=1,
        head_norm_eps=1e-12,
        flags=1,
        tokenizer=Tokenizer.WORDPIECE,
        tokenizer_flags=7,
        max_word_chars=100,
        unk_id=0,
        cls_id=1,
        sep_id=2,
        pad_id=3,
        mask_id=4,
    )
    rng = np.random.default_rng(1)
    rank = config.score_rank
    optional = {
        "embeddings.word.second.weight": (9, 70),
        "layers.0.query.bias": (10,),
        "layers.0.intermediate.shift": (70,),
        "layers.0.intermediate.second.weight": (67, 70),
        "layers.0.intermediate.second.bias": (67,),
        "layers.0.intermediate.second.shift": (70,),
        "layers.1.output.rms.gain": (67,),
        "layers.1.low_rank.key_m.bias": (rank,),
        "mlm.decoder.bias": (9,),
    }
    tensors = {
        slot.name: _example_tensor(slot.name, slot.kind, slot.shape, rng)
        for slot in slots(config, optional)
        if not slot.optional or slot.name in optional
    }
    clipped = Quantizer(QuantizerKind.DYN_SYM, Scope.TOKEN, -8, 7, eps=1e-5, clip=(-2.0, 2.5))
    asymmetric = Quantizer(QuantizerKind.DYN_ASYM, Scope.SEQUENCE, 0, 15, eps=1e-8)
    positive = Quantizer(QuantizerKind.BOOL, Scope.STATIC, 0, 1)
    quantizers = {
        "layers.0.attention.probabilities": positive,
        "layers.1.attention.probabilities": positive,
        "layers.0.attention.query": Quantizer(QuantizerKind.SIGN, Scope.STATIC, -1, 1, 0.5),
        "layers.0.attention.value": Quantizer(QuantizerKind.INT_MIN, Scope.TOKEN, 0, 3, 0.25),
        "layers.0.intermediate": Quantizer(QuantizerKind.INT, Scope.STATIC, -2, 1, 0.125),
        "layers.0.intermediate.second": clipped,
        "layers.1.value": asymmetric,
        "mlm.decoder": clipped,
    }
    vocabulary = [b"[UNK]", b"[CLS]", b"[SEP]", b"[PAD]", b"[MASK]", b"##s", b"", "é".encode()]
    metadata = {"model.name": "full", "label.0": "non", "label.1": "oui", "empty": ""}
    return ModelFile(config, tensors, quantizers, vocabulary, metadata)


def _example_tensor(
    name: str, kind: SlotKind, shape: tuple[int, ...], rng: np.random.Generator
) -> Tensor:
    """A tensor for a slot of `full_model`: every dtype and every layout occurs."""
    values = rng.standard_normal(shape, np.float32)
    rows = shape[0]
    if name == "embeddings.word.weight":
        return Tensor.from_int8(rng.integers(-127, 128, shape), abs(values[:, 0]))
    if name == "embeddings.token_type.weight":
        columns = values[0]
        return Tensor.from_bits(values > 0, columns, Layout.COLUMN, -columns, Layout.COLUMN)
    if name.endswith("query.weight"):
        groups = Layout.ROW_GROUP
        return Tensor.from_bits(values > 0, values[:2, 0], groups, values[:5, 1], groups)
    if name.endswith("key.weight"):
        codes = rng.integers(-1, 2, shape)
        return Tensor.from_codes(codes, values[:, 0], Layout.ROW, values[0, :1], Layout.TENSOR)
    if name.endswith(("value.weight", "intermediate.weight", "second.weight", "pooler.weight")):
        return Tensor.from_bits(values > 0, np.full(rows, 0.5), Layout.ROW)
    if kind in (SlotKind.MATRIX, SlotKind.FLOAT_MATRIX):
        return Tensor.from_float(values, DType.F16 if rows % 2 else DType.F32)
    return Tensor.from_float(values)


Fields = dict[str, Any]


@dataclass
class RawFile:
    """The records of a file, free to be wrong; `build` derives counts, places and checksums.

    `header` overrides what is derived. A tensor is its fields and "data"; `unowned_data` follow the
    last one.
    """

    config: Fields
    tensors: list[Fields]
    quantizers: list[Fields]
    n_tokens: int
    n_metadata: int
    vocabulary: bytes
    metadata: bytes
    header: Fields = field(default_factory=dict)
    unowned_data: bytes = b""

    @classmethod
    def parse(cls, content: bytes) -> RawFile:
        """The records of a valid file."""
        header = HEADER.unpack(content, 0)
        quantizers_at = TENSOR_TABLE_OFFSET + TENSOR.size * header["n_tensors"]
        vocabulary_at = quantizers_at + QUANTIZER.size * header["n_quantizers"]
        metadata_at = align64(vocabulary_at + header["vocabulary_bytes"])
        tensors = []
        for i in range(header["n_tensors"]):
            entry = TENSOR.unpack(content, TENSOR_TABLE_OFFSET + TENSOR.size * i)
            start = entry.pop("data_offset")
            entry["data"] = content[start : start + entry.pop("data_bytes")]
            del entry["crc32c"]
            tensors.append(entry)
        return cls(
            CONFIG.unpack(content, CONFIG_OFFSET),
            tensors,
            [
                QUANTIZER.unpack(content, quantizers_at + QUANTIZER.size * i)
                for i in range(header["n_quantizers"])
            ],
            header["n_tokens"],
            header["n_metadata"],
            content[vocabulary_at : vocabulary_at + header["vocabulary_bytes"]],
            content[metadata_at : metadata_at + header["metadata_bytes"]],
        )

    def tensor(self, name: str) -> Fields:
        return next(entry for entry in self.tensors if entry["name"].rstrip(b"\0") == name.encode())

    def quantizer(self, name: str) -> Fields:
        padded = name.encode().ljust(64, b"\0")
        return next(entry for entry in self.quantizers if entry["name"] == padded)

    def remove_tensor(self, name: str) -> None:
        self.tensors.remove(self.tensor(name))

    def remove_quantizer(self, name: str) -> None:
        self.quantizers.remove(self.quantizer(name))

    def add_tensor(self, name: str, like: str) -> Fields:
        """A copy of a tensor under another name, in its place of the order."""
        entry = dict(self.tensor(like), name=name.encode().ljust(64, b"\0"))
        self.tensors.append(entry)
        self.tensors.sort(key=lambda entry: bytes(entry["name"]))
        return entry

    def add_quantizer(self, name: str, like: str) -> Fields:
        """A copy of a quantizer under another name, in its place of the order."""
        entry = dict(self.quantizer(like), name=name.encode().ljust(64, b"\0"))
        self.quantizers.append(entry)
        self.quantizers.sort(key=lambda entry: bytes(entry["name"]))
        return entry

    def build(self) -> bytes:
        def padded(part: bytes) -> bytes:
            return part.ljust(align64(len(part)), b"\0")

        tables_bytes = CONFIG.size + TENSOR.size * len(self.tensors)
        tables_bytes += QUANTIZER.size * len(self.quantizers)
        sections = padded(self.vocabulary) + padded(self.metadata)
        place = data_offset = HEADER.size + tables_bytes + len(sections)
        body, data = CONFIG.pack(self.config), b""
        for entry in self.tensors:
            placed = {
                "data_offset": place,
                "data_bytes": len(entry["data"]),
                "crc32c": _checksum(entry["data"]),
            }
            body += TENSOR.pack({**placed, **entry})
            data += padded(entry["data"])
            place = data_offset + len(data)
        body += b"".join(map(QUANTIZER.pack, self.quantizers)) + sections
        data += self.unowned_data
        derived = {
            "magic": MAGIC,
            "version": 1,
            "header_bytes": HEADER.size,
            "file_bytes": data_offset + len(data),
            "required_features": 0,
            "optional_features": 0,
            "n_tensors": len(self.tensors),
            "n_quantizers": len(self.quantizers),
            "n_tokens": self.n_tokens,
            "n_metadata": self.n_metadata,
            "vocabulary_bytes": len(self.vocabulary),
            "metadata_bytes": len(self.metadata),
            "data_offset": data_offset,
            "tables_crc32c": crc32c(body),
            "header_crc32c": 0,
        }
        return repair_header(HEADER.pack({**derived, **self.header}) + body + data)


def repair_header(content: bytes) -> bytes:
    """The file with the header's checksum made right."""
    crc = struct.pack("<I", crc32c(content[:HEADER_CRC_OFFSET]))
    return content[:HEADER_CRC_OFFSET] + crc + content[HEADER.size :]


def repair(content: bytes) -> bytes:
    """A file of at least a header with all checksums made right, as far as its records are sane."""
    repaired = bytearray(content)
    header = HEADER.unpack(content, 0)
    end_of_table = TENSOR_TABLE_OFFSET + TENSOR.size * header["n_tensors"]
    last_entry = min(end_of_table, len(content)) - TENSOR.size
    for start in range(TENSOR_TABLE_OFFSET, last_entry + 1, TENSOR.size):
        entry = TENSOR.unpack(content, start)
        data = content[entry["data_offset"] : entry["data_offset"] + entry["data_bytes"]]
        struct.pack_into("<I", repaired, start + TENSOR.offsets["crc32c"], _checksum(data))
    tables = bytes(repaired[CONFIG_OFFSET : header["data_offset"]])
    struct.pack_into("<I", repaired, TABLES_CRC_OFFSET, crc32c(tables))
    return repair_header(bytes(repaired))


def cases() -> Iterator[Case]:
    """All cases, in the order of section 5; every status of the section occurs."""
    valid = to_bytes(full_model())
    yield Case("valid", valid, "OK")
    yield from _of_files(valid)
    yield from _of_headers(valid)
    edits = (_config_edits, _tensor_edits, _quantizer_edits, _text_edits, _network_edits)
    for name, status, edit in chain.from_iterable(step() for step in edits):
        raw = RawFile.parse(valid)
        edit(raw)
        yield Case(name, raw.build(), status)
    yield from _of_data(valid)


def _of_files(valid: bytes) -> Iterator[Case]:
    """Steps 1 and 6: the magic, and files cut or grown."""
    for i in range(len(MAGIC)):
        damaged = valid[:i] + bytes([valid[i] ^ 0x20]) + valid[i + 1 :]
        yield Case(f"magic, byte {i}", damaged, "FILE_MAGIC")
        yield Case(f"magic, byte {i} of a short file", damaged[: i + 1], "FILE_MAGIC")
    yield Case("text mode, CR LF to LF", valid.replace(b"\r\n", b"\n"), "FILE_MAGIC")
    yield Case("text mode, LF to CR LF", valid.replace(b"\n", b"\r\n"), "FILE_MAGIC")
    for n in range(HEADER.size):
        yield Case(f"cut to {n} bytes", valid[:n], "FILE_TRUNCATED")
    for n in (HEADER.size, HEADER.size + 1, TENSOR_TABLE_OFFSET, TENSOR_TABLE_OFFSET + 77):
        yield Case(f"cut to {n} bytes", valid[:n], "FILE_TRUNCATED")
    for n in (1, 63, 64, 65, 1000):
        yield Case(f"cut by {n} bytes", valid[:-n], "FILE_TRUNCATED")
    yield Case("one byte more", valid + b"\0", "FILE_TRAILING")
    yield Case("64 bytes more", valid + bytes(64), "FILE_TRAILING")


def _of_headers(valid: bytes) -> Iterator[Case]:
    """Steps 2 to 7: fields of the header, checksums, padding before the data."""
    header = HEADER.unpack(valid, 0)

    def with_header(**fields: Any) -> bytes:
        return repair_header(HEADER.pack({**header, **fields}) + valid[HEADER.size :])

    for version in (0, 2, 0xFFFFFFFF):
        yield Case(f"version {version}", with_header(version=version), "FILE_VERSION")
    for offset in range(12, HEADER.size):
        damaged = valid[:offset] + bytes([valid[offset] ^ 0x10]) + valid[offset + 1 :]
        yield Case(f"header, byte {offset} damaged", damaged, "FILE_HEADER_CHECKSUM")
    for size in (0, 127, 129, 0xFFFFFFFF):
        yield Case(f"header_bytes {size}", with_header(header_bytes=size), "FILE_HEADER")
    for bit in (0, 63):
        name = f"required feature {bit}"
        yield Case(name, with_header(required_features=1 << bit), "FILE_FEATURE")
        yield Case(f"optional feature {bit}", with_header(optional_features=1 << bit), "OK")
    for i in (0, 23):
        reserved = bytes(i) + b"\1"
        yield Case(f"header, reserved byte {i}", with_header(reserved=reserved), "FILE_RESERVED")
    yield Case("header, ignored bytes", with_header(ignored=b"\xff" * 16), "OK")
    for name, limit in LIMITS.items():
        yield Case(f"{name} above its limit", with_header(**{name: limit + 1}), "FILE_LIMIT")
        greatest = with_header(**{name: limit})
        status = "FILE_TRUNCATED" if name == "file_bytes" else "FILE_SECTION"
        yield Case(f"{name} at its limit", greatest, status)
    sections: list[tuple[str, Fields]] = [
        ("tokens without vocabulary_bytes", {"vocabulary_bytes": 0}),
        ("vocabulary_bytes without tokens", {"n_tokens": 0}),
        ("vocabulary_bytes below its offsets", {"vocabulary_bytes": 4 * header["n_tokens"] + 3}),
        ("entries without metadata_bytes", {"metadata_bytes": 0}),
        ("metadata_bytes without entries", {"n_metadata": 0}),
        ("metadata_bytes too few", {"metadata_bytes": 9 * header["n_metadata"] - 1}),
        ("data_offset 0", {"data_offset": 0}),
        ("data_offset one byte late", {"data_offset": header["data_offset"] + 1}),
        ("data_offset 64 bytes late", {"data_offset": header["data_offset"] + 64}),
        ("data_offset near 2^64", {"data_offset": 2**64 - 64}),
        ("one tensor more", {"n_tensors": header["n_tensors"] + 1}),
        ("one quantizer less", {"n_quantizers": header["n_quantizers"] - 1}),
        ("file_bytes 0", {"file_bytes": 0}),
        ("file_bytes not of 64", {"file_bytes": header["file_bytes"] - 1}),
        ("file_bytes before the data", {"file_bytes": header["data_offset"] - 64}),
    ]
    for name, fields in sections:
        yield Case(name, with_header(**fields), "FILE_SECTION")
    yield Case(
        "file_bytes more", with_header(file_bytes=header["file_bytes"] + 64), "FILE_TRUNCATED"
    )
    yield Case(
        "file_bytes less", with_header(file_bytes=header["file_bytes"] - 64), "FILE_TRAILING"
    )

    tables_end = header["data_offset"]
    for offset in (CONFIG_OFFSET, TENSOR_TABLE_OFFSET + 5, tables_end - 1):
        damaged = valid[:offset] + bytes([valid[offset] ^ 1]) + valid[offset + 1 :]
        yield Case(f"tables, byte {offset} damaged", damaged, "FILE_TABLES_CHECKSUM")
    wrong = with_header(tables_crc32c=header["tables_crc32c"] ^ 1)
    yield Case("tables, checksum damaged", wrong, "FILE_TABLES_CHECKSUM")
    raw = RawFile.parse(valid)
    metadata_at = tables_end - align64(len(raw.metadata))
    for part, start in (
        ("vocabulary", metadata_at - align64(len(raw.vocabulary)) + len(raw.vocabulary)),
        ("metadata", metadata_at + len(raw.metadata)),
    ):
        for offset in (start, align64(start) - 1):
            padding = bytearray(valid)
            padding[offset] = 1
            name = f"padding after the {part}, byte {offset - start}"
            yield Case(name, repair(bytes(padding)), "FILE_PADDING")


Edit = tuple[str, str, Callable[[RawFile], object]]  # name, status, what it does


def _config_edits() -> Iterator[Edit]:
    """Step 8."""

    def edit(status: str, **fields: Any) -> Edit:
        name = ", ".join(f"{key} {value}" for key, value in fields.items())
        return f"config: {name}", status, lambda raw: raw.config.update(fields)

    outside: dict[str, tuple[int, ...]] = {
        "architecture": (0, 2),
        "vocab_size": (0, (1 << 24) + 1),
        "hidden_size": (0, 16_385),
        "n_layers": (1_025, 0xFFFFFFFF),
        "n_heads": (0, 1_025),
        "head_size": (0, 1_025),
        "intermediate_size": (0, 65_537),
        "max_positions": (0, 65_537),
        "n_token_types": (0, 257),
        "hidden_activation": (0, 6),
        "attention_normalizer": (2,),
        "score_rank": (65,),
        "value_term": (2,),
        "pooler": (3,),
        "head": (6,),
        "n_labels": (1,),
        "problem": (1,),
        "head_activation": (0, 6),
        "tokenizer": (0, 2),
        "max_word_chars": (0, 4_097),
        "unk_id": (-2, -1, 8),
        "cls_id": (-2, 8),
        "sep_id": (-2, 8),
        "pad_id": (-2, 8),
        "mask_id": (-2, 8, -(2**31), 2**31 - 1),
    }
    for name, values in outside.items():
        for value in values:
            yield edit("FILE_CONFIG", **{name: value})
    epsilons = ("layer_norm_eps", "rms_norm_eps", "pooler_norm_eps", "head_norm_eps")
    for name in (*epsilons, "score_scale"):
        for number in (NAN, INFINITY, -INFINITY, -1.0, -0.0):
            yield edit("FILE_CONFIG", **{name: number})
    yield edit("FILE_CONFIG", score_scale=0.0)
    yield edit("FILE_CONFIG", pooler=1)  # with pooler_norm_eps
    yield edit("FILE_CONFIG", pooler=1, pooler_norm_eps=-0.0)
    for bit in (1, 31):
        yield edit("FILE_RESERVED", flags=1 << bit)
    for bit in (3, 31):
        yield edit("FILE_RESERVED", tokenizer_flags=1 << bit)
    for i in (0, 63):
        yield edit("FILE_RESERVED", reserved=bytes(i) + b"\1")
    yield edit("FILE_RESERVED", flags=2, tokenizer=2)  # the field that comes first
    yield edit("FILE_CONFIG", head=3)  # with head_activation, n_labels 0
    for head, labels in ((3, 0), (3, 65_537), (4, 0), (5, 0), (5, 1), (5, 3)):
        yield edit("FILE_CONFIG", head=head, n_labels=labels)
    for problem in (0, 5):
        yield edit("FILE_CONFIG", head=4, n_labels=2, problem=problem)
    yield edit("FILE_CONFIG", head=5, n_labels=2, problem=1)
    yield edit("FILE_CONFIG", head=4, n_labels=2, problem=2)  # with head_activation
    yield edit("FILE_CONFIG", head=4, n_labels=2, problem=2, head_activation=0)  # and its eps
    yield edit("FILE_CONFIG", n_heads=1_024, head_size=17)
    yield edit("FILE_CONFIG", pooler=0, pooler_norm_eps=0.0)  # head 2 needs it
    classifier = {"head": 3, "n_labels": 2, "problem": 2, "head_activation": 0}
    yield edit("FILE_CONFIG", **classifier, head_norm_eps=0.0, pooler=0, pooler_norm_eps=0.0)
    yield edit("FILE_CONFIG", vocab_size=7)  # below n_tokens

    def without_vocabulary(raw: RawFile, field: str = "tokenizer", value: int = 0) -> None:
        absent = {"tokenizer": 0, "tokenizer_flags": 0, "max_word_chars": 0}
        ids = dict.fromkeys(("unk_id", "cls_id", "sep_id", "pad_id", "mask_id"), -1)
        raw.config.update({**absent, **ids, field: value})
        raw.n_tokens, raw.vocabulary = 0, b""

    yield "config: no vocabulary", "OK", without_vocabulary
    unused = {"tokenizer": 1, "tokenizer_flags": 1, "max_word_chars": 1, "unk_id": 0, "cls_id": 0}
    for name, value in unused.items():
        yield (
            f"config: {name} without vocabulary",
            "FILE_CONFIG",
            partial(without_vocabulary, field=name, value=value),
        )


_BAD_NAMES = {
    "empty": b"",
    "capital": b"layers.0.Query",
    "space": b"a b",
    "not ASCII": "é".encode(),
    "64 characters": b"a" * 64,
    "text after its end": b"a\0b",
}


def _tensor_edits() -> Iterator[Edit]:
    """Step 9, on the last tensor of a kind, so that what precedes it stays right."""

    def edit(title: str, status: str, tensor: str, **fields: Any) -> Edit:
        return title, status, lambda raw: raw.tensor(tensor).update(fields)

    bits, tern, i8 = "pooler.weight", "layers.1.key.weight", "embeddings.word.weight"
    f32, f16 = "pooler.norm.gain", "layers.1.value_term.weight"
    for title, bad_name in _BAD_NAMES.items():
        yield edit(f"tensor name: {title}", "FILE_NAME", f32, name=bad_name)
    yield "tensors: descending", "FILE_TENSOR_ORDER", lambda raw: raw.tensors.reverse()
    yield (
        "tensors: twice",
        "FILE_TENSOR_ORDER",
        lambda raw: raw.tensors.append(dict(raw.tensors[-1])),
    )
    for dtype in (0, 6, 0xFFFFFFFF):
        yield edit(f"tensor: dtype {dtype}", "FILE_TENSOR_DTYPE", f32, dtype=dtype)
    shapes: list[Fields] = [
        {"rank": 0},
        {"rank": 3},
        {"rows": 0},
        {"rows": (1 << 24) + 1},
        {"columns": 0},
        {"columns": 2},  # of rank 1
        {"rank": 2, "columns": 65_537},
    ]
    for fields in shapes:
        yield edit(f"tensor: {fields}", "FILE_TENSOR_SHAPE", f32, **fields)
    layouts: list[tuple[str, Fields]] = [
        (bits, {"scale_layout": 5}),
        (bits, {"offset_layout": 5}),
        (bits, {"n_scales": 1}),
        (bits, {"n_offsets": 1}),
        (bits, {"scale_layout": 0}),
        (bits, {"scale_layout": 1, "n_scales": 2}),
        (bits, {"scale_layout": 2, "n_scales": 1}),
        (bits, {"scale_layout": 2, "n_scales": 70}),
        (bits, {"scale_layout": 2, "n_scales": 3}),
        (bits, {"scale_layout": 2, "n_scales": 0}),
        (bits, {"scale_layout": 3, "n_scales": 69}),
        (bits, {"scale_layout": 4, "n_scales": 71}),
        (tern, {"offset_layout": 2, "n_offsets": 4}),
        (i8, {"scale_layout": 0, "n_scales": 0}),
        (i8, {"offset_layout": 1, "n_offsets": 1}),
        (f32, {"scale_layout": 1, "n_scales": 1}),
        (f32, {"offset_layout": 1, "n_offsets": 1}),
        (f16, {"scale_layout": 1, "n_scales": 1}),
        (f16, {"offset_layout": 3, "n_offsets": 1}),
    ]
    for name, fields in layouts:
        yield edit(f"{name}: {fields}", "FILE_TENSOR_LAYOUT", name, **fields)
    for name in (bits, tern, i8, f32, f16):
        for data_bytes in (0, 1, 2**40, 2**64 - 1):
            title = f"{name}: data_bytes {data_bytes}"
            yield edit(title, "FILE_TENSOR_PLACE", name, data_bytes=data_bytes)
    for data_offset in (0, 64, 2**64 - 64):
        title = f"tensor: data_offset {data_offset}"
        yield edit(title, "FILE_TENSOR_PLACE", f32, data_offset=data_offset)
    huge: Fields = {"rank": 2, "rows": 1 << 24, "columns": 1 << 16, "data_bytes": 1 << 42}
    yield edit("tensor: past the end", "FILE_TENSOR_PLACE", f32, **huge)
    yield (
        "tensors: data behind the last",
        "FILE_TENSOR_PLACE",
        lambda raw: setattr(raw, "unowned_data", bytes(64)),
    )
    yield "tensors: none, but data", "FILE_TENSOR_PLACE", _keep_data_alone
    for i in (0, 11):
        reserved = bytes(i) + b"\1"
        yield edit(f"tensor: reserved byte {i}", "FILE_RESERVED", f32, reserved=reserved)


def _keep_data_alone(raw: RawFile) -> None:
    """No tensors, but 64 bytes of data."""
    raw.tensors.clear()
    raw.unowned_data = bytes(64)


def _quantizer_edits() -> Iterator[Edit]:
    """Step 10."""
    place = "layers.0.attention.query"

    def edit(status: str, **fields: Any) -> Edit:
        title = f"quantizer: {fields}"
        return title, status, lambda raw: raw.quantizer(place).update(fields)

    for title, name in _BAD_NAMES.items():
        renamed = edit("FILE_NAME", name=name)[2]
        yield f"quantizer name: {title}", "FILE_NAME", renamed
    yield "quantizers: descending", "FILE_QUANTIZER", lambda raw: raw.quantizers.reverse()
    yield (
        "quantizers: twice",
        "FILE_QUANTIZER",
        lambda raw: raw.quantizers.append(dict(raw.quantizers[-1])),
    )
    sign: Fields = {"kind": 1, "scope": 0, "lo": -1, "hi": 1, "step": 1.0, "eps": 0.0}
    int_: Fields = {"kind": 2, "scope": 0, "lo": -8, "hi": 7, "step": 0.5, "eps": 0.0}
    int_min: Fields = {"kind": 3, "scope": 1, "lo": 0, "hi": 255, "step": 0.5, "eps": 0.0}
    dyn_sym: Fields = {"kind": 4, "scope": 2, "lo": -128, "hi": 127, "step": 1.0, "eps": 1e-5}
    dyn_asym: Fields = {"kind": 5, "scope": 1, "lo": 0, "hi": 255, "step": 1.0, "eps": 0.0}
    bool_: Fields = {"kind": 6, "scope": 0, "lo": 0, "hi": 1, "step": 1.0, "eps": 0.0}
    kinds = (sign, int_, int_min, dyn_sym, dyn_asym, bool_)
    for valid in (sign, int_, dyn_sym):  # the others are not allowed for this place
        yield edit("OK", **valid)
    for kind in (0, 7, 0xFFFFFFFF):
        yield edit("FILE_QUANTIZER", **{**sign, "kind": kind})
    for valid in kinds:
        scopes = (1, 2, 3) if valid["scope"] == 0 else (0, 3)
        for scope in scopes:
            yield edit("FILE_QUANTIZER", **{**valid, "scope": scope})
        free_step = valid["kind"] in (1, 2, 3)
        for step in (NAN, INFINITY, 0.0, -0.0, -1.0, *(() if free_step else (0.5,))):
            yield edit("FILE_QUANTIZER", **{**valid, "step": step})
        free_eps = valid["kind"] in (4, 5)
        for eps in (NAN, INFINITY, -0.0, -1.0, *(() if free_eps else (1e-5,))):
            yield edit("FILE_QUANTIZER", **{**valid, "eps": eps})
    codes: list[tuple[Fields, tuple[tuple[int, int], ...]]] = [
        (sign, ((0, 1), (-1, 2))),
        (int_, ((-32_769, 0), (0, 32_768), (3, 3), (4, 3), (2**31 - 1, -(2**31)))),
        (int_min, ((-1, 3), (0, 0), (0, 256), (0, -1))),
        (dyn_sym, ((-127, 127), (-3, 2), (-1, 0), (-256, 255), (0, -1), (-(2**31), 2**31 - 1))),
        (dyn_asym, ((-1, 255), (0, 2), (0, 0), (0, 511), (0, -1), (0, 2**31 - 1))),
        (bool_, ((0, 2), (-1, 1))),
    ]
    for valid, pairs in codes:
        for lo, hi in pairs:
            yield edit("FILE_QUANTIZER", **{**valid, "lo": lo, "hi": hi})
    for valid in (sign, int_, int_min, bool_):
        yield edit("FILE_QUANTIZER", **valid, flags=1)
    for clip_lo, clip_hi in ((1.0, 0.5), (NAN, 1.0), (0.0, NAN), (-INFINITY, 1.0), (0.0, INFINITY)):
        yield edit("FILE_QUANTIZER", **dyn_sym, flags=1, clip_lo=clip_lo, clip_hi=clip_hi)
    yield edit("OK", **dyn_sym, flags=1, clip_lo=-0.0, clip_hi=0.0)
    for fields in ({"clip_lo": -1.0}, {"clip_hi": 1.0}, {"clip_lo": -0.0}):
        yield edit("FILE_QUANTIZER", **dyn_sym, **fields)
    for bit in (1, 31):
        yield edit("FILE_RESERVED", flags=1 << bit)
    for i in (0, 27):
        yield edit("FILE_RESERVED", reserved=bytes(i) + b"\1")


def _text_edits() -> Iterator[Edit]:
    """Step 11."""

    def vocabulary(title: str, offsets: list[int], text: bytes) -> Edit:
        def edit(raw: RawFile) -> None:
            raw.vocabulary = struct.pack(f"<{raw.n_tokens + 1}I", *offsets) + text

        return f"vocabulary: {title}", "FILE_VOCABULARY", edit

    yield vocabulary("first offset 1", [1, 1, 1, 1, 1, 1, 1, 1, 1], b"a")
    yield vocabulary("descending", [0, 2, 1, 2, 2, 2, 2, 2, 2], b"ab")
    yield vocabulary("past the end", [0, 9, 9, 9, 9, 9, 9, 9, 2], b"ab")
    yield vocabulary("last offset short", [0, 1, 1, 1, 1, 1, 1, 1, 1], b"ab")
    yield vocabulary("last offset long", [0, 3, 3, 3, 3, 3, 3, 3, 3], b"ab")
    yield vocabulary("offsets above the text", [0] + [2**32 - 1] * 8, b"ab")
    yield vocabulary("long token", [0] + [1025] * 8, b"a" * 1025)
    for title, text in _NOT_UTF8.items():
        yield vocabulary(title, [0, *[len(text)] * 8], text)
    yield vocabulary("character split between tokens", [0, 1, *[2] * 7], "é".encode())

    def metadata(title: str, n: int, section: bytes, status: str = "FILE_METADATA") -> Edit:
        def edit(raw: RawFile) -> None:
            raw.n_metadata, raw.metadata = n, section

        return f"metadata: {title}", status, edit

    def entry(key: bytes, value: bytes) -> bytes:
        return struct.pack("<II", len(key), len(value)) + key + value

    yield metadata("sorted", 3, entry(b"a", b"") + entry(b"a.b", b"1") + entry(b"b", b""), "OK")
    yield metadata("descending", 2, entry(b"b", b"") + entry(b"a", b""))
    yield metadata("prefix after longer", 2, entry(b"ab", b"") + entry(b"a", b""))
    yield metadata("twice", 2, entry(b"a", b"") + entry(b"a", b""))
    yield metadata("empty key", 1, entry(b"", b"12345678"))
    yield metadata("key of 256", 1, entry(b"k" * 256, b""))
    yield metadata("key past the end", 1, struct.pack("<II", 255, 0) + b"abc")
    yield metadata("value past the end", 1, struct.pack("<II", 1, 2**32 - 1) + b"a")
    yield metadata("second entry past the end", 2, entry(b"a", b"1" * 10))
    yield metadata("second entry cut", 2, entry(b"a", b"12") + struct.pack("<II", 1, 0)[:7])
    yield metadata("bytes left", 1, entry(b"a", b"") + b"\0")
    for title, text in _NOT_UTF8.items():
        yield metadata(f"{title} in a key", 1, entry(text, b""))
        yield metadata(f"{title} in a value", 1, entry(b"a", text))


_NOT_UTF8 = {
    "continuation alone": b"a\x80",
    "cut sequence": b"\xe2\x82",
    "overlong": b"\xc0\xaf",
    "surrogate": b"\xed\xa0\x80",
    "above U+10FFFF": b"\xf4\x90\x80\x80",
    "byte FF": b"\xff",
}


def _network_edits() -> Iterator[Edit]:
    """Step 12."""
    required = (
        "embeddings.word.weight",
        "embeddings.norm.bias",
        "layers.0.query.weight",
        "layers.1.low_rank.key_p.weight",
        "layers.1.value_term.weight",
        "layers.1.output_norm.gain",
        "pooler.weight",
        "pooler.norm.gain",
        "mlm.transform.weight",
        "next_sentence.weight",
        "embeddings.word.weight.scale",
        "layers.1.key.weight.offset",
    )
    for name in required:
        removed = partial(RawFile.remove_tensor, name=name)
        yield f"missing: {name}", "FILE_TENSOR_MISSING", removed
    optional = ("layers.0.query.bias", "layers.0.intermediate.shift", "layers.1.output.rms.gain")
    for name in (*optional, "mlm.decoder.bias"):
        yield f"without: {name}", "OK", partial(RawFile.remove_tensor, name=name)

    def replace(status: str, name: str, why: str, array: Tensor) -> Edit:
        def edit(raw: RawFile) -> None:
            rank = len(array.shape)
            shape = {"rank": rank, "rows": array.rows, "columns": array.columns}
            fields = {"dtype": int(array.dtype), "data": array.data.tobytes(), **shape}
            raw.tensor(name).update(fields)

        return f"{name}: {why}", status, edit

    def zeros(*shape: int) -> Tensor:
        return Tensor.from_float(np.zeros(shape))

    f16 = Tensor.from_float(np.zeros(70), DType.F16)
    wrong_shapes = {
        "embeddings.position.weight": ((5, 70), (4, 71), (280,)),
        "embeddings.norm.gain": ((69,), (70, 1)),
        "layers.0.query.bias": ((70,),),
        "layers.0.intermediate.shift": ((67,),),
        "layers.0.intermediate.second.shift": ((67,),),
        "layers.1.output.rms.gain": ((70,),),
        "embeddings.word.weight.scale": ((8,), (9, 1)),
        "layers.1.key.weight.offset": ((2,),),
        "mlm.decoder.bias": ((70,),),
    }
    for name, shapes in wrong_shapes.items():
        for shape in shapes:
            yield replace("FILE_TENSOR_SHAPE", name, f"shape {shape}", zeros(*shape))
    yield replace("FILE_TENSOR_DTYPE", "pooler.norm.gain", "f16", f16)
    half = Tensor.from_float(np.zeros(1), DType.F16)
    yield replace("FILE_TENSOR_DTYPE", "layers.1.key.weight.offset", "f16", half)
    bits = Tensor.from_bits(np.zeros((2, 70), bool))
    yield replace("FILE_TENSOR_DTYPE", "layers.0.low_rank.query_m.weight", "bit1", bits)
    yield "low rank of bits without their scale", "FILE_TENSOR_DTYPE", _low_rank_bits
    yield from _columns()
    yield from _misfits()


def _misfits() -> Iterator[Edit]:
    """Step 12: what lacks its partner, or belongs to no slot or place."""
    yield (
        "shift without quantizer",
        "FILE_QUANTIZER",
        partial(RawFile.remove_quantizer, name="layers.0.intermediate"),
    )
    yield (
        "second shift without quantizer",
        "FILE_QUANTIZER",
        partial(RawFile.remove_quantizer, name="layers.0.intermediate.second"),
    )
    yield (
        "rms.gain without rms_norm_eps",
        "FILE_CONFIG",
        lambda raw: raw.config.update(rms_norm_eps=0.0),
    )
    for name in (
        "a",
        "zzz",
        "embeddings.norm.gain.scale",
        "layers.0.low_rank.key_p.shift",
        "layers.0.query.second.bias",
        "layers.00.query.weight",
        "layers.2.query.weight",
        "mlm.decoder.second.weight",
        "classifier.weight",
    ):
        added = partial(RawFile.add_tensor, name=name, like="pooler.norm.gain")
        yield f"unknown tensor {name}", "FILE_TENSOR_UNKNOWN", added
    for name, like in (
        ("embeddings.word", "layers.0.intermediate"),
        ("layers.0.query.second", "layers.0.intermediate"),
        ("layers.0.low_rank.key_p", "layers.0.intermediate"),
        ("layers.2.query", "layers.0.intermediate"),
        ("mlm.decoder.second", "layers.0.intermediate"),
        ("layers.0.query", "layers.0.attention.probabilities"),
        ("layers.1.attention.query", "layers.0.attention.value"),
        ("layers.1.attention.key", "layers.1.value"),
        ("layers.1.attention.value", "layers.0.attention.probabilities"),
    ):
        placed = partial(RawFile.add_quantizer, name=name, like=like)
        yield f"quantizer {name} like {like}", "FILE_QUANTIZER", placed
    yield (
        "kind bool after a softmax",
        "FILE_QUANTIZER",
        lambda raw: raw.config.update(attention_normalizer=1),
    )
    yield (
        "no normalizer and no quantizer of probabilities",
        "FILE_QUANTIZER",
        partial(RawFile.remove_quantizer, name="layers.1.attention.probabilities"),
    )


def _low_rank_bits(raw: RawFile) -> None:
    """Bits for a matrix of floats, whose scale is missing too: the dtype is looked at first."""
    bits = Tensor.from_bits(np.zeros((2, 70), bool))
    fields = {"dtype": 4, "scale_layout": 1, "n_scales": 1, "data": bits.data.tobytes()}
    raw.tensor("layers.0.low_rank.query_p.weight").update(fields)


def _columns() -> Iterator[Edit]:
    """Layout column, which a quantizer forbids."""

    def columns(name: str, part: str) -> Callable[[RawFile], None]:
        def edit(raw: RawFile) -> None:
            raw.tensor(name).update({f"{part}_layout": 4, f"n_{part}s": 70})
            companion = raw.add_tensor("a", "pooler.norm.gain")
            companion["name"] = f"{name}.{part}".encode().ljust(64, b"\0")
            raw.tensors = [
                entry
                for entry in raw.tensors
                if entry["name"] != companion["name"] or entry is companion
            ]
            raw.tensors.sort(key=lambda entry: bytes(entry["name"]))

        return edit

    for name, status in (
        ("pooler.weight", "OK"),
        ("embeddings.word.second.weight", "FILE_TENSOR_LAYOUT"),  # the decoder's, by the tie
        ("layers.0.intermediate.weight", "FILE_TENSOR_LAYOUT"),
        ("layers.0.intermediate.second.weight", "FILE_TENSOR_LAYOUT"),
        ("layers.1.value.weight", "FILE_TENSOR_LAYOUT"),
    ):
        for part in ("scale", "offset"):
            yield f"{name}: {part} layout column", status, columns(name, part)


def _of_data(valid: bytes) -> Iterator[Case]:
    """Step 13."""
    raw = RawFile.parse(valid)
    header = HEADER.unpack(valid, 0)
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    at = header["data_offset"]
    for entry in raw.tensors:
        name = entry["name"].rstrip(b"\0").decode()
        starts[name], ends[name] = at, at + len(entry["data"])
        at = align64(ends[name])

    def changed(offset: int, replacement: bytes) -> bytes:
        return valid[:offset] + replacement + valid[offset + len(replacement) :]

    def case(title: str, name: str, at: int, replacement: bytes, status: str) -> Case:
        content = repair(changed(starts[name] + at, replacement))
        return Case(f"{name}: {title}", content, status, needs_verify=True)

    for name in ("embeddings.word.weight", "pooler.norm.gain"):
        for offset in (starts[name], ends[name] - 1):
            damaged = changed(offset, bytes([valid[offset] ^ 1]))
            title = f"{name}: byte {offset - starts[name]} damaged"
            yield Case(title, damaged, "FILE_TENSOR_CHECKSUM", needs_verify=True)
        yield case("padding", name, ends[name] - starts[name], b"\1", "FILE_PADDING")
        last = align64(ends[name]) - starts[name] - 1
        yield case("last byte of padding", name, last, b"\1", "FILE_PADDING")
    # 70 columns: byte 8 of a row holds columns 64 to 69 and two bits of padding
    bits, tern = "pooler.weight", "layers.0.key.weight"
    yield case("bit 70 of a row", bits, 8, bytes([valid[starts[bits] + 8] | 64]), "FILE_PADDING")
    yield case("bit 127 of the last row", bits, 16 * 69 + 15, b"\x80", "FILE_PADDING")
    yield case("nonzero bit 70", tern, 8, bytes([valid[starts[tern] + 8] | 64]), "FILE_PADDING")
    signs = 16 * 10
    yield case("sign bit 127 of the last row", tern, signs + 159, b"\x80", "FILE_PADDING")
    yield case("sign of a zero", tern, 0, b"\0" * 8 + b"\0" * 8, "FILE_PADDING")
    yield case("code -128", "embeddings.word.weight", 7, b"\x80", "FILE_PADDING")
    f32, f16 = "pooler.norm.gain", "layers.0.value_term.weight"
    for title, value in (("NaN", NAN), ("infinity", INFINITY), ("-infinity", -INFINITY)):
        yield case(title, f32, 0, struct.pack("<f", value), "FILE_VALUE")
        yield case(f"{title} at the end", f32, 4 * 69, struct.pack("<f", value), "FILE_VALUE")
        yield case(title, f16, 0, struct.pack("<e", value), "FILE_VALUE")
        yield case(f"{title} at the end", f16, 2 * 69, struct.pack("<e", value), "FILE_VALUE")
    yield case("infinite", f"{bits}.scale", 0, struct.pack("<f", INFINITY), "FILE_VALUE")


_TELLING_NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 6, 7, 63, 64, 65, 69, 70, 71, 127, 128, 129, 255, 256, 257),
    *(65_535, 65_536, 65_537, 1 << 24, (1 << 24) + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF),
    *(0x3F800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x00000001, 0x007FFFFF),
)


def mutant(content: bytes, rng: random.Random) -> bytes:
    """A file with one to three random changes, mostly before the data, and checksums made right."""
    changed = bytearray(content)
    before_data = HEADER.unpack(content, 0)["data_offset"]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        end = min(before_data, len(changed)) if rng.random() < 0.85 else len(changed)
        at = rng.randrange(end)
        choice = rng.random()
        if choice < 0.3:
            changed[at] ^= 1 << rng.randrange(8)
        elif choice < 0.5:
            changed[at] = rng.randrange(256)
        elif choice < 0.9:
            struct.pack_into("<I", changed, at - at % 4, rng.choice(_TELLING_NUMBERS))
        elif choice < 0.95:
            changed[at:at] = bytes(rng.randrange(1, 200))
        else:
            del changed[at : at + rng.randrange(1, 200)]
    mutated = bytes(changed)
    return repair(mutated) if len(mutated) >= HEADER.size else mutated
