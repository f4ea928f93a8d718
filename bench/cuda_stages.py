"""Times of the GPU's kernels in one run of an encoder, added up by kernel.

`python bench/cuda_stages.py MODEL BATCH LENGTH [MODE] [--kernels FORCED]` runs itself under ncu,
which serializes kernels and times each; their sum is what a run takes but for the gaps between
launches.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "formats")]


def run(path: Path, batch: int, length: int, mode: str, kernels: str | None) -> None:
    """One run: the first of a shape, which is not recorded as a graph."""
    from bitm import Model

    with Model(path, device="cuda", activations=mode, kernels=kernels) as model:
        ids = np.random.default_rng(1).integers(5, model.info["vocab_size"], (batch, length))
        model.hidden_states(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("batch", type=int)
    parser.add_argument("length", type=int)
    parser.add_argument("mode", nargs="?", default="int8")
    parser.add_argument("--kernels", help="attention=tensor")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        run(
            arguments.model,
            arguments.batch,
            arguments.length,
            arguments.mode,
            arguments.kernels,
        )
        return
    command = ["ncu", "--csv", "--metrics", "gpu__time_duration.sum,dram__bytes.sum"]
    command += ["--clock-control", "none", "--cache-control", "none"]  # as in a run
    command += ["--print-units", "base", sys.executable, *sys.argv, "--inner"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    lines = done.stdout.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith('"ID"')) :]
    launches: dict[str, int] = defaultdict(int)
    totals: dict[tuple[str, str], float] = defaultdict(float)
    for row in csv.DictReader(table):
        name, metric = row["Kernel Name"].partition("(")[0], row["Metric Name"]
        launches[name] += metric == "gpu__time_duration.sum"
        totals[name, metric] += float(row["Metric Value"].replace(",", ""))
    print(f"{'kernel':<48} {'launches':>8} {'us':>10} {'us each':>9} {'MB':>9} {'TB/s':>6}")
    for name in sorted(launches, key=lambda n: -totals[n, "gpu__time_duration.sum"]):
        us = totals[name, "gpu__time_duration.sum"] / 1e3
        megabytes = totals[name, "dram__bytes.sum"] / 1e6
        print(
            f"{name[:48]:<48} {launches[name]:>8} {us:10.1f} {us / launches[name]:9.2f} "
            f"{megabytes:9.1f} {megabytes / us:6.2f}"
        )
    all_us = sum(totals[name, "gpu__time_duration.sum"] for name in launches) / 1e3
    print(f"{'all':<48} {sum(launches.values()):>8} {all_us:10.1f}")


if __name__ == "__main__":
    main()
