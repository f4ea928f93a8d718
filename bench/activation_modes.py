"""Measures what the activation modes cost a weights-only masked LM: the reason for `auto`.

python bench/activation_modes.py small.bitm wiki_valid.txt

Cuts a text into windows, masks 15 % of the tokens, and compares cross-entropy, accuracy and the
best token at each mask between float32, int16 and int8 activations.  `auto` is the fastest mode
whose cross-entropy is within 0.2 % of that of float32 and whose best token is the same for 99 % of
the masks.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitm import Model
from machine import machine

MODES = ("float32", "int16", "int8")
Ints = npt.NDArray[np.int64]


def masked_windows(model: Model, text: str, n: int, length: int) -> tuple[Ints, Ints, Ints]:
    """Returns input ids [n, length], positions of masks [n, P] (-1: none), and their true ids."""
    info = model.info
    ids = np.array(model.tokenize(text)[1:-1])
    inner = length - 2
    windows = ids[: len(ids) // inner * inner].reshape(-1, inner)[:n]
    windows = np.pad(windows, ((0, 0), (1, 0)), constant_values=info["cls_id"])
    windows = np.pad(windows, ((0, 0), (0, 1)), constant_values=info["sep_id"])
    chosen = np.random.default_rng(0).random(windows.shape) < 0.15
    chosen[:, [0, -1]] = False
    positions = np.full((len(windows), chosen.sum(1).max()), -1)
    for row, mask in zip(positions, chosen):
        found = np.flatnonzero(mask)
        row[: len(found)] = found
    return np.where(chosen, info["mask_id"], windows), positions, windows[chosen]


def evaluate(path: Path, mode: str, inputs: Ints, positions: Ints, targets: Ints) -> dict[str, Any]:
    """Returns cross-entropy in nats, accuracy, seconds, and the best token at each mask."""
    with Model(path, activations=mode) as model:
        start = time.perf_counter()
        logits = model.logits(inputs, positions=positions)[positions >= 0].astype(np.float64)
        seconds = time.perf_counter() - start
    peaks = logits.max(1)
    log_sums = np.log(np.exp(logits - peaks[:, None]).sum(1)) + peaks
    best = logits.argmax(1)
    return {
        "cross_entropy": float((log_sums - logits[np.arange(len(targets)), targets]).mean()),
        "accuracy": float((best == targets).mean()),
        "seconds": seconds,
        "best": best,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=300)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    with Model(arguments.model) as model:
        text = arguments.text.read_text()
        batch = masked_windows(model, text, arguments.windows, arguments.length)
    results = {mode: evaluate(arguments.model, mode, *batch) for mode in MODES}
    reference = results["float32"]["best"]
    for result in results.values():
        result["agreement"] = float((result.pop("best") == reference).mean())
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    document = {
        "command": "python bench/activation_modes.py",
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "model": arguments.model.name,
        "masks": len(batch[2]),
        "modes": results,
    }
    print(f"{'mode':8}  cross-entropy  accuracy  same best token  seconds  ({len(batch[2])} masks)")
    for mode, result in results.items():
        print(
            f"{mode:8}  {result['cross_entropy']:13.4f}  {result['accuracy']:8.4f}"
            f"  {result['agreement']:15.4f}  {result['seconds']:7.1f}"
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
