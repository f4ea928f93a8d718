"""Cold start: from the start of a process to its first answer, and the memory that it took.

python bench/cold_start.py base.bitm --tool build/cc-release/bitm

Runs `fill-mask` of the C tool, the same in Python, and one batch of 1 x 128 tokens in the C tool,
one thread each, with the file in the system's cache. Processor time says what other programs do
not disturb; the memory is the greatest resident size.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tables
from machine import provenance, write_results

TEXT = "The river flows into the [MASK]."
PYTHON = "import sys, bitm; bitm.Model(sys.argv[1], threads=1).fill_mask(sys.argv[2])"


def commands(model: Path, tool: Path) -> dict[str, list[str]]:
    """What is measured, by name."""
    one_batch = ["--length", "128", "--warmup", "0", "--repeat", "1", "--threads", "1"]
    return {
        "C tool, fill-mask": [str(tool), "fill-mask", str(model), TEXT, "--threads", "1"],
        "Python, fill_mask": [sys.executable, "-c", PYTHON, str(model), TEXT],
        "C tool, 1 x 128 tokens": [str(tool), "bench", str(model), *one_batch],
    }


def run(command: list[str]) -> tuple[float, float, int]:
    """Seconds, processor seconds and greatest resident bytes of a process."""
    # Modules are compiled once, as those of an installed package are.
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=settings) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def measure(model: Path, tool: Path, n_runs: int) -> list[dict[str, Any]]:
    """One entry for each of `commands`, whose runs take turns."""
    runs: dict[str, list[tuple[float, float, int]]] = {}
    for i in range(n_runs + 1):
        for name, command in commands(model, tool).items():
            result = run(command)
            if i > 0:  # the first brings the files into the cache
                runs.setdefault(name, []).append(result)
    return [
        {
            "what": name,
            "median_ms": round(statistics.median(r[0] for r in results) * 1e3, 1),
            "least_ms": round(min(r[0] for r in results) * 1e3, 1),
            "least_processor_ms": round(min(r[1] for r in results) * 1e3, 1),
            "peak_bytes": max(r[2] for r in results),
        }
        for name, results in runs.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tool", type=Path, required=True, help="the C tool: make build")
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    document = {
        **provenance("python bench/cold_start.py"),
        "file_bytes": arguments.model.stat().st_size,
        "runs": measure(arguments.model, arguments.tool, arguments.runs),
    }
    if arguments.output is not None:
        write_results(arguments.output, document)
    print(tables.cold_start(document))


if __name__ == "__main__":
    main()
