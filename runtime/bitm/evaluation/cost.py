"""What a model costs: bytes, multiply-adds and bit operations, counted from its file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bitm_formats.model import Quantizer, Tables
from bitm_formats.reader import check_opening
from bitm_formats.spec import HEADER, DType, Head, QuantizerKind, Slot, SlotKind, slots

_WEIGHT_BITS = {DType.F32: 32, DType.F16: 16, DType.I8: 8, DType.BIT1: 1, DType.TERN: 2}
_MODE_BITS = {"int8": 8, "int11": 11, "int16": 16, "float32": 32}
_FLOAT_BITS = 32
_PARTS = ("layers", "embeddings")
_DECODER = "mlm.decoder.weight"


@dataclass(frozen=True)
class Memory:
    """Bytes of a model's weights; scales count to the matrix that they scale.

    Attributes:
        layers: those of the encoder's layers, with their biases and norms.
        embeddings: tables and their norm.
        head: pooler and what predicts, without a decoder that is the word embeddings.
        as_float32: of all parameters, were they float32.
        as_counted_by_bitmaps: the original project's count, which nothing ran: one bit for each
            weight of a binary matrix, its scale not counted, 4 bytes for every other parameter.
    """

    layers: int
    embeddings: int
    head: int
    as_float32: int
    as_counted_by_bitmaps: int


@dataclass(frozen=True)
class Operations:
    """Multiply-adds, and bit operations: each multiply-add times the bits of its two factors.

    Bit operations are the measure of van Baalen et al. 2020 ("Bayesian Bits") and others: a product
    of a 1-bit weight and an 8-bit activation counts 8, of two float32 1,024.

    Attributes:
        linears, linear_bits: of the encoder's linears, for a token.
        one_bit_share: how many of these multiply-adds have a 1-bit weight.
        attention, attention_bits: of scores and weighted sums, for a token of a sequence of
            `length`.
        head, head_bits: of what predicts, for a mask (masked LM), a token or a sequence.
    """

    length: float
    linears: int
    linear_bits: int
    one_bit_share: float
    attention: float
    attention_bits: float
    head: int
    head_bits: int


def read_tables(path: str) -> Tables:
    """Returns what precedes the data in a file; raises FormatError, OSError."""
    with Path(path).open("rb") as file:
        content = file.read(HEADER.size)
        if len(content) == HEADER.size:
            content += file.read(HEADER.unpack(content, 0)["data_offset"] - HEADER.size)
        return check_opening(content, Path(path).stat().st_size)


def memory(tables: Tables) -> Memory:
    """Counts the bytes of a model's weights."""
    sizes = dict.fromkeys((*_PARTS, "head"), 0)
    n_floats = n_bits = 0
    for entry in tables.tensors.values():
        part = entry.name.partition(".")[0]
        sizes[part if part in _PARTS else "head"] += entry.data_bytes
        n = entry.rows * entry.columns if entry.rank == 2 else entry.rows
        if entry.name.endswith((".scale", ".offset")):
            continue
        if entry.dtype == DType.BIT1:
            n_bits += n
        else:
            n_floats += n
    return Memory(
        **sizes,
        as_float32=4 * (n_floats + n_bits),
        as_counted_by_bitmaps=4 * n_floats + -(-n_bits // 8),
    )


def operations(tables: Tables, activations: str, length: float) -> Operations:
    """Counts what a run computes with an arithmetic of activations, as "int8" or "float32".

    `length` is the mean number of tokens of a sequence that a token attends to.
    """
    matrices = [(slot, _bits(tables, slot, activations)) for slot in _matrices(tables)]
    linears = [m for m in matrices if m[0].name.startswith("layers.")]
    head = [m for m in matrices if not m[0].name.startswith(("layers.", "embeddings."))]
    if tables.config.head in (Head.MASKED_LM, Head.MASKED_LM_NEXT_SENTENCE):
        head = [m for m in head if m[0].name.startswith("mlm.")]  # the pooler is not run
    one_bit = [m for m in linears if tables.tensors[m[0].name].dtype == DType.BIT1]
    n_linears = _total(linears)
    return Operations(
        length=length,
        linears=n_linears,
        linear_bits=_total(linears, in_bits=True),
        one_bit_share=_total(one_bit) / n_linears if n_linears else 0.0,
        head=_total(head),
        head_bits=_total(head, in_bits=True),
        **_attention(tables, length),
    )


def _matrices(tables: Tables) -> Iterator[Slot]:
    """The matrices that are multiplied; a decoder that is the word embeddings included."""
    for slot in slots(tables.config, tables.tensors):
        is_matrix = slot.kind in (SlotKind.MATRIX, SlotKind.FLOAT_MATRIX)
        if is_matrix and (slot.name in tables.tensors or slot.name == _DECODER):
            yield slot


def _bits(tables: Tables, slot: Slot, activations: str) -> int:
    """Bits of a weight times bits of its factor. Activations are floats beside float weights."""
    stored = "embeddings.word.weight" if slot.name not in tables.tensors else slot.name
    dtype = DType(tables.tensors[stored].dtype)
    if dtype not in (DType.BIT1, DType.TERN):
        return _WEIGHT_BITS[dtype] * _FLOAT_BITS
    return _WEIGHT_BITS[dtype] * _code_bits(tables.quantizers, slot.place, _MODE_BITS[activations])


def _code_bits(quantizers: Mapping[str, Quantizer], place: str, default: int) -> int:
    """Bits of the codes that a quantizer gives; signs, with their zero, count as one."""
    if place not in quantizers:
        return default
    quantizer = quantizers[place]
    if quantizer.kind in (QuantizerKind.SIGN, QuantizerKind.BOOL):
        return 1
    return max(1, (quantizer.hi - quantizer.lo).bit_length())


def _total(matrices: list[tuple[Slot, int]], in_bits: bool = False) -> int:
    return sum(slot.shape[0] * slot.shape[1] * (bits if in_bits else 1) for slot, bits in matrices)


def _attention(tables: Tables, length: float) -> dict[str, float]:
    """Scores and weighted sums are `length` times the attention size each, in every layer."""
    config = tables.config
    products = length * config.attention_size
    total_bits = 0.0
    for n in range(config.n_layers):
        query, key, value, probabilities = (
            _code_bits(tables.quantizers, f"layers.{n}.attention.{name}", _FLOAT_BITS)
            for name in ("query", "key", "value", "probabilities")
        )
        total_bits += products * (query * key + probabilities * value)
    return {"attention": 2 * products * config.n_layers, "attention_bits": total_bits}


# ---- The process ----


def reset_peak() -> bool:
    """Starts a new measurement of peak memory, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int | None:
    """Returns the peak resident memory of this process since `reset_peak`; None: unknown."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
