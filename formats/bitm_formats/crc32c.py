"""CRC-32C (Castagnoli, RFC 3720) with numpy.

A CRC is the remainder of the message, as a polynomial over the two numbers 0 and 1, by P. Two facts
make that fast with operations on whole arrays:

- P divides x^209 + x^144 + x^54 + x^39 + x^14 + 1 (no polynomial of so few terms has a smaller
  degree), hence also the same with x^M for x where M is a power of 2. So a chunk of M bits may be
  added, which is XOR, to the chunks 65, 155, 170, 195 and 209 places after it, and then dropped.
- A CRC register that takes n zero bytes is a linear map of its 32 bits: `_shift(registers, k)` with
  n = 2**k. The CRC of a message, started from 0, follows from the CRCs of its halves a and b as
  `shift(a, bytes of b) ^ b`, so an array of words is folded pairwise, down to one word.
"""

from __future__ import annotations

import functools
from typing import Any, Union

import numpy as np
import numpy.typing as npt

Buffer = Union[bytes, bytearray, memoryview]
Octets = npt.NDArray[np.uint8]
Registers = npt.NDArray[np.uint32]

_POLYNOMIAL_REFLECTED = 0x82F63B78
_SPARSE_MULTIPLE = (209, 144, 54, 39, 14, 0)  # its exponents
_BLOCK_BYTES = 1 << 20  # keeps one block in the processor's cache


def crc32c(data: Buffer, crc: int = 0) -> int:
    """The CRC-32C of `data`, or of what `crc` covers followed by `data`."""
    octets = np.frombuffer(data, np.uint8)
    remainder = octets[:0]
    for start in range(0, octets.size, _BLOCK_BYTES):
        remainder = np.concatenate([remainder, octets[start : start + _BLOCK_BYTES]])
        remainder = _without_leading_chunks(remainder, 512)
    for chunk_bytes in (64, 8):  # few steps each
        remainder = _without_leading_chunks(remainder, chunk_bytes)
    register = _advance(crc ^ 0xFFFFFFFF, octets.size) ^ _crc_from_zero(remainder)
    return register ^ 0xFFFFFFFF


def _without_leading_chunks(octets: Octets, chunk_bytes: int) -> Octets:
    """At most 209 chunks, whose CRC from 0 is that of `octets`: leading zeros change nothing."""
    degree = _SPARSE_MULTIPLE[0]
    distances = [degree - exponent for exponent in _SPARSE_MULTIPLE[1:]]
    n_chunks = -(-octets.size // chunk_bytes)
    padded = np.zeros(n_chunks * chunk_bytes, np.uint8)
    padded[padded.size - octets.size :] = octets
    chunks = padded.view(np.uint64).reshape(n_chunks, chunk_bytes // 8)
    n_dropped = max(n_chunks - degree, 0)
    for start in range(0, n_dropped, min(distances)):
        stop = min(start + min(distances), n_dropped)
        for distance in distances:
            chunks[start + distance : stop + distance] ^= chunks[start:stop]
    return padded[n_dropped * chunk_bytes :]


def _crc_from_zero(octets: Octets) -> int:
    """The register after `octets`, started from 0."""
    words = octets.size // 4 + 1  # leading zeros change nothing
    padded = np.zeros(4 * words, np.uint8)
    padded[4 * words - octets.size :] = octets
    registers = _shift(padded.view("<u4").astype(np.uint32), 2)
    log2_bytes = 2
    while registers.size > 1:
        if registers.size % 2:
            registers = np.concatenate([np.zeros(1, np.uint32), registers])
        registers = _shift(registers[0::2], log2_bytes) ^ registers[1::2]
        log2_bytes += 1
    return int(registers[0])


def _advance(register: int, n_bytes: int) -> int:
    """The register after n_bytes zero bytes."""
    registers = np.array([register], np.uint32)
    for log2_bytes in range(n_bytes.bit_length()):
        if n_bytes >> log2_bytes & 1:
            registers = _shift(registers, log2_bytes)
    return int(registers[0])


def _shift(registers: Registers, log2_bytes: int) -> Registers:
    """Each register after 2**log2_bytes zero bytes."""
    tables = _shift_tables(log2_bytes)
    shifted: Registers = tables[0][registers & 0xFF]
    shifted ^= tables[1][(registers >> 8) & 0xFF]
    shifted ^= tables[2][(registers >> 16) & 0xFF]
    shifted ^= tables[3][registers >> 24]
    return shifted


@functools.cache
def _shift_tables(log2_bytes: int) -> Registers:
    """[4, 256]: what each value of each byte of a register becomes."""
    images: npt.NDArray[Any] = np.uint32(1) << np.arange(32, dtype=np.uint32)
    if log2_bytes == 0:
        for _ in range(8):
            images = (images >> 1) ^ (images & 1) * np.uint32(_POLYNOMIAL_REFLECTED)
    else:
        images = _shift(_shift(images, log2_bytes - 1), log2_bytes - 1)
    tables = np.zeros((4, 256), np.uint32)
    for bit in range(8):
        half = 1 << bit
        tables[:, half : 2 * half] = tables[:, :half] ^ images[bit::8, None]
    return tables
