"""Predicts BERT-base's times on a Jetson Nano from the limits of its GPU; no board was at hand.

python bench/nano.py --output bench/results/nano.json

Every stage of a layer is counted as native/src/cuda/ computes it on sm_53: operations of the unit
that limits it, and bytes that must come from or go to memory.  A stage takes the longer of the two
times; nothing overlaps with another stage.  That is a floor: a kernel that keeps its unit busy half
of the time takes twice as long.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tables
from machine import provenance, write_results

LAYERS, HIDDEN, INNER, HEADS = 12, 768, 3072, 12
LENGTHS = (16, 64, 128)

# One Maxwell multiprocessor: results a clock by the throughput table of NVIDIA's CUDA programming
# guide for compute capability 5.3, and the memory of the board's data sheet.
CLOCK = 921.6e6
BYTES_PER_S = 25.6e9
RATES = {"popc": 32, "int": 128, "float": 128, "half2 pair": 256}

# 32 weights and inputs are an AND, a population count and an addition: population counts limit.
# Signs take two such products: of the positive inputs, and of those that are not zero.
SIGN_TERMS, WORD_BITS = 2, 32
# Without dp4a a byte is a multiplication with addition, after its bits have been taken from a word.
INT_PER_BYTE = 2
# Float operations of a value, counted in native/src/kernels/canonical.h and the kernels.
PER_GELU, PER_EXP, PER_NORM, PER_CODE = 26, 20, 8, 10
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Stage:
    """A part of a layer: operations of the unit that limits it, bytes that it moves."""

    name: str
    unit: str
    operations: float
    bytes: float

    @property
    def seconds(self) -> float:
        """The longer of the times of unit and memory."""
        return max(self.operations / RATES[self.unit] / CLOCK, self.bytes / BYTES_PER_S)

    @property
    def limit(self) -> str:
        """What takes that long."""
        compute = self.operations / RATES[self.unit] / CLOCK
        return self.unit if compute > self.bytes / BYTES_PER_S else "memory"


def product(name: str, tokens: int, columns: int, rows: int, signs: bool) -> Stage:
    """A linear: packed inputs and weights are read once, results written as floats."""
    macs = tokens * columns * rows
    code_bytes = SIGN_TERMS / 8 if signs else 1
    n_bytes = columns * rows / 8 + tokens * columns * code_bytes + tokens * rows * FLOAT_BYTES
    if signs:
        return Stage(name, "popc", macs / WORD_BITS * SIGN_TERMS, n_bytes)
    return Stage(name, "int", macs * INT_PER_BYTE, n_bytes)


def layer(tokens: int, length: int, signs: bool) -> Iterator[Stage]:
    """The stages of a layer of BERT-base over sequences of so many tokens."""
    pairs = tokens * length
    for name, inputs, outputs in (
        ("query, key, value", HIDDEN, 3 * HIDDEN),
        ("attention output", HIDDEN, HIDDEN),
        ("intermediate", HIDDEN, INNER),
        ("output", INNER, HIDDEN),
    ):
        values = tokens * inputs
        yield Stage("packing", "float", values * PER_CODE, values * (FLOAT_BYTES + 1))
        yield product(name, tokens, inputs, outputs, signs)
    yield Stage("GELU", "float", tokens * INNER * PER_GELU, 0)  # in the product's kernel
    yield Stage(
        "attention",
        "float",
        2 * pairs * HIDDEN + pairs * HEADS * PER_EXP,
        4 * tokens * HIDDEN * FLOAT_BYTES,
    )
    for _ in range(2):
        values = tokens * HIDDEN
        yield Stage("norms", "float", values * PER_NORM, 3 * values * FLOAT_BYTES)


def predict(length: int, signs: bool) -> dict[str, object]:
    """Milliseconds of the encoder at one sequence, whole and by part."""
    stages = list(layer(length, length, signs))
    linears = {"query, key, value", "attention output", "intermediate", "output"}
    parts: dict[str, float] = {}
    for stage in stages:
        part = "linears" if stage.name in linears else stage.name
        parts[part] = parts.get(part, 0.0) + stage.seconds * LAYERS * 1e3
    n_macs = LAYERS * length * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)
    return {
        "model": "W1A1" if signs else "W1A8",
        "length": length,
        "parts_ms": {name: round(ms, 2) for name, ms in parts.items()},
        "limits": sorted({stage.limit for stage in stages if stage.name in linears}),
        "total_ms": round(sum(parts.values()), 1),
        "half2_linears_ms": round(n_macs / RATES["half2 pair"] / CLOCK * 1e3, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    document = {
        **provenance("python bench/nano.py"),
        "clock_mhz": CLOCK / 1e6,
        "gigabytes_per_s": BYTES_PER_S / 1e9,
        "results_a_clock": RATES,
        "runs": [predict(length, signs) for signs in (True, False) for length in LENGTHS],
    }
    print(tables.nano(document))
    if arguments.output is not None:
        write_results(arguments.output, document)


if __name__ == "__main__":
    main()
