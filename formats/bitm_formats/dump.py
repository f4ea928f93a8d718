"""Prints what is in a `.bitm` file: `python -m bitm_formats.dump FILE [--hex]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from pathlib import Path

from bitm_formats.errors import FormatError
from bitm_formats.model import Quantizer, Tables
from bitm_formats.reader import check_all, check_opening
from bitm_formats.spec import (
    CONFIG,
    CONFIG_OFFSET,
    HEADER,
    QUANTIZER,
    TENSOR,
    TENSOR_TABLE_OFFSET,
    Activation,
    ConfigFlag,
    DType,
    Head,
    Layout,
    Normalizer,
    Pooler,
    Problem,
    QuantizerKind,
    Record,
    Scope,
    TensorEntry,
    Tokenizer,
    TokenizerFlag,
)

_MEANINGS: dict[str, type[IntEnum | IntFlag]] = {
    "hidden_activation": Activation,
    "attention_normalizer": Normalizer,
    "pooler": Pooler,
    "head": Head,
    "problem": Problem,
    "head_activation": Activation,
    "flags": ConfigFlag,
    "tokenizer": Tokenizer,
    "tokenizer_flags": TokenizerFlag,
}


def listing(content: bytes) -> Iterator[str]:
    """Lines that describe a file. Raises FormatError where it is not valid."""
    tables = check_opening(content, len(content))
    header = tables.header
    yield "offset    header"
    yield from _fields(HEADER, content, 0)
    yield "offset    configuration"
    yield from _fields(CONFIG, content, CONFIG_OFFSET)
    yield f"offset    tensor table ({header.n_tensors})"
    for index, tensor in enumerate(tables.tensors.values()):
        yield f"{TENSOR_TABLE_OFFSET + TENSOR.size * index:08x}  {_tensor_line(tensor)}"
    yield f"offset    quantizer table ({header.n_quantizers})"
    for index, (name, quantizer) in enumerate(tables.quantizers.items()):
        offset = header.quantizer_table_offset + QUANTIZER.size * index
        yield f"{offset:08x}  {_quantizer_line(name, quantizer)}"
    yield from _texts(tables)
    yield f"{header.data_offset:08x}  data, to {header.file_bytes:08x}"
    check_all(tables, content)
    yield "valid, checksums included"


def _fields(record: Record, content: bytes, start: int) -> Iterator[str]:
    for name, value in record.unpack(content, start).items():
        if isinstance(value, bytes):
            shown = value.hex(" ") if any(value) else f"{len(value)} zeros"
        elif name.endswith("crc32c"):
            shown = f"{value:08x}"
        else:
            shown = f"{value:.9g}" if isinstance(value, float) else str(value)
            if name in _MEANINGS and value:
                meaning = _MEANINGS[name](value)
                shown += f" ({meaning.name or repr(meaning)})"
        yield f"{start + record.offsets[name]:08x}  {name:21} {shown}"


def _tensor_line(entry: TensorEntry) -> str:
    """One line: name, dtype, shape, layouts, place, checksum."""
    line = f"{entry.name:44} {DType(entry.dtype).name:4} {list(entry.shape)!s:15}"
    for part, layout, count in (
        ("scale", entry.scale_layout, entry.n_scales),
        ("offset", entry.offset_layout, entry.n_offsets),
    ):
        if count:
            line += f" {part}: {Layout(layout).name} {count}"
    end = entry.data_offset + entry.data_bytes
    return f"{line} at {entry.data_offset:08x} to {end:08x}, crc {entry.crc32c:08x}"


def _quantizer_line(name: str, quantizer: Quantizer) -> str:
    """One line: place, kind, scope, codes, numbers."""
    line = f"{name:44} {QuantizerKind(quantizer.kind).name:8} {Scope(quantizer.scope).name:8}"
    line += f" {quantizer.lo} to {quantizer.hi}, step {quantizer.step:.9g}, eps {quantizer.eps:.9g}"
    if quantizer.clip is not None:
        line += f", clip {quantizer.clip[0]:.9g} to {quantizer.clip[1]:.9g}"
    return line


def _texts(tables: Tables) -> Iterator[str]:
    """Vocabulary and metadata, escaped: nothing of a file reaches the terminal as it is."""
    header = tables.header
    yield f"{header.vocabulary_offset:08x}  vocabulary ({header.n_tokens})"
    for number, token in enumerate(tables.vocabulary):
        yield f"          {number:7} {token.decode()!a}"
    yield f"{header.metadata_offset:08x}  metadata ({header.n_metadata})"
    for key, value in tables.metadata.items():
        yield f"          {key!a}: {value!a}"


def hex_lines(content: bytes) -> Iterator[str]:
    """A hex dump: 16 bytes a line; `*` stands for lines that repeat the one before."""
    previous = b""
    skipping = False
    for offset in range(0, len(content), 16):
        line = content[offset : offset + 16]
        if line != previous:
            text = "".join(chr(octet) if 32 <= octet < 127 else "." for octet in line)
            yield f"{offset:08x}  {line.hex(' '):47}  |{text}|"
        elif not skipping:
            yield "*"
        skipping = line == previous
        previous = line
    yield f"{len(content):08x}"


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit status 0, or 1 where the file is not valid or cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m bitm_formats.dump",
        description="Print what is in a .bitm file, and check it.",
        epilog="example: python -m bitm_formats.dump model.bitm | less",
    )
    parser.add_argument("file", type=Path, help="the .bitm file")
    parser.add_argument("--hex", action="store_true", help="print all bytes too")
    options = parser.parse_args(arguments)
    try:
        content = options.file.read_bytes()
        if options.hex:
            for line in hex_lines(content):
                print(line)
        for line in listing(content):
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except FormatError as err:
        print(f"{options.file}: {err.status}: {err}", file=sys.stderr)
        return 1
    except OSError as err:
        print(f"{options.file}: {err.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
