"""One answer everywhere: every family of checkpoints, however it runs here and on emulated ARM.

python tests/check_invariance.py NATIVE_BUILD AARCH64_BUILD ARMV7_BUILD [--output FILE.json]

A small random model of every family is converted. On this machine its logits must be the same bits
with every tier of kernels, 1 to 4 threads, sequences alone and in batches, with padding and
without; `bitm verify` must print the same hashes here and on emulated 64-bit and 32-bit ARM
processors. Where a model's file is the one that stands in the committed table, so must be its
hashes. `make invariance` runs it; the table is in bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import bitm_formats
import test_family_bitmaps
import test_family_bitnet
from bitm import Model
from bitm._native import default_kernels
from check_arm import ROOT, hashes
from families.bibert import BiBert
from families.binarybert import BinaryBert
from families.bipft import BiPft
from families.bit import Bit
from families.comparison import batch_of, convert, convert_model, sequences
from families.low_bit import randomize
from tiny_models import masked_lm

sys.path.insert(0, str(ROOT / "bench"))
from machine import provenance, write_results

COMMITTED = ROOT / "bench/results/invariance.json"
MODES = ("int8", "int11", "int16", "float32")
THREADS = (1, 2, 3, 4)
SEQUENCES = 9
SPLITS = (1, 4, SEQUENCES)  # sequences of a batch
EMULATED = {"aarch64": ["qemu-aarch64-static"], "armv7": ["qemu-arm-static"]}


def bibert() -> Any:
    """A model of BiBERT, with parameters."""
    model = BiBert().model()
    randomize(model, seed=1)
    return model


# Each makes a file of a model of random weights in a folder.
FAMILIES: dict[str, Callable[[Path], bitm_formats.ModelFile]] = {
    "weights only": lambda _: masked_lm(np.random.default_rng(0)),
    "BiBERT": lambda folder: convert_model(bibert(), folder).model,
    "BiT, 1 bit": lambda folder: convert_model(Bit(1).model(seed=1), folder).model,
    "BiT, 4 bits": lambda folder: convert_model(Bit(4).model(seed=1), folder).model,
    "BinaryBERT, 8 bits": lambda folder: convert_model(BinaryBert().model(seed=1), folder).model,
    "BinaryBERT, ternary": lambda folder: (
        convert_model(BinaryBert("lsq", 4, False, 2).model(seed=1), folder).model
    ),
    "BiPFT": lambda folder: convert_model(BiPft().model(seed=1), folder).model,
    "bitmaps": lambda folder: (
        test_family_bitmaps.converted(folder, test_family_bitmaps.make()).model
    ),
    "BitNet": lambda folder: (
        convert(test_family_bitnet.saved(folder, test_family_bitnet.make())).model
    ),
}


def tiers() -> Iterator[str]:
    """For every variant of kernels that this machine runs, what forces it wherever it exists."""
    variants: dict[str, list[str]] = {}
    for kernel in default_kernels():
        if kernel["available"]:
            variants.setdefault(kernel["variant"], []).append(kernel["op"])
    for variant, ops in variants.items():
        yield ",".join(f"{op}={variant}" for op in ops)


def answers(model: Model, split: int, pads: bool) -> bytes:
    """The logits of the fixed sequences, without what stands at padding."""
    info = model.info
    texts = sequences(info["vocab_size"], info["max_positions"], SEQUENCES)
    texts = [(ids, types % info["n_token_types"]) for ids, types in texts]
    found: list[npt.NDArray[np.float32]] = []
    for start in range(0, SEQUENCES, split):
        part = texts[start : start + split]
        ids, mask, types = batch_of(texts if pads else part)
        rows = slice(start, start + split) if pads else slice(None)
        logits = model.logits(ids[rows], mask[rows], token_type_ids=types[rows])
        of_tokens = logits.ndim == 3
        found += [one[: len(ids)] if of_tokens else one for one, (ids, _) in zip(logits, part)]
    return b"".join(np.ascontiguousarray(one, "<f4").tobytes() for one in found)


def run_here(path: Path, mode: str) -> tuple[str, int]:
    """The hash of the model's logits and in how many ways it came out; exits where one differs."""
    first, ways = "", 0
    for kernels in tiers():
        for threads in THREADS:
            with Model(path, threads=threads, activations=mode, kernels=kernels) as model:
                for split in SPLITS:
                    for pads in (False, True):
                        found = f"{zlib.crc32(answers(model, split, pads)):08x}"
                        way = f"{kernels}, {threads} threads, batches of {split}, padded: {pads}"
                        if found != (first := first or found):
                            sys.exit(f"{path.stem}, {mode}: {found} with {way}, not {first}")
                        ways += 1
    return first, ways


def check(path: Path, native: Path, builds: dict[str, Path]) -> list[dict[str, Any]]:
    """A row for every mode in which the model can run."""
    verified = hashes(native / "bitm", "verify", path)
    for name, emulator in EMULATED.items():
        found = hashes(*emulator, builds[name] / "bitm", "verify", path)
        if found != verified:
            sys.exit("\n".join([f"{path.stem}: other hashes on {name}:", *found, *verified]))
    by_mode = dict(line.split() for line in verified[1:])
    with Model(path) as model:
        modes = ["auto"] if model.info["quantizes_activations"] else list(MODES)
    rows = []
    for mode in modes:
        logits, ways = run_here(path, mode)
        verify = by_mode["int11" if mode == "auto" else mode]
        file = f"{zlib.crc32(path.read_bytes()):08x}"
        rows.append({"file": file, "mode": mode, "logits": logits, "verify": verify, "ways": ways})
    return rows


def compare_with_table(rows: list[dict[str, Any]]) -> int:
    """How many rows are of the committed table's files; exits where one has other hashes."""
    known = {
        (row["file"], row["mode"]): (row["logits"], row["verify"])
        for row in json.loads(COMMITTED.read_text())["rows"]
    }
    found = [row for row in rows if (row["file"], row["mode"]) in known]
    for row in found:
        expected = known[row["file"], row["mode"]]
        if (row["logits"], row["verify"]) != expected:
            sys.exit(f"{row}: other hashes than in {COMMITTED}: {expected}")
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("native", type=Path)
    for name in EMULATED:
        parser.add_argument(name, type=Path)
    parser.add_argument("--output", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    builds = {name: getattr(arguments, name) for name in EMULATED}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, make in FAMILIES.items():
            folder = Path(temporary) / name.replace(", ", "-").replace(" ", "-")
            folder.mkdir()
            path = folder / f"{folder.name}.bitm"
            bitm_formats.write(path, make(folder / "checkpoint"))
            for row in check(path, arguments.native, builds):
                rows.append({"family": name, **row})
                print(name, *row.values(), flush=True)
    if arguments.output is None:
        print(f"{compare_with_table(rows)} of {len(rows)} files are those of {COMMITTED.name}")
    else:
        document = provenance("python tests/check_invariance.py")
        variants = [kernels.rpartition("=")[2] for kernels in tiers()]
        write_results(arguments.output, {**document, "tiers": variants, "rows": rows})
    print(f"{sum(row['ways'] + len(EMULATED) for row in rows)} passed, 0 failed")


if __name__ == "__main__":
    main()
