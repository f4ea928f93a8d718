"""What helps a model with sign activations? Trains it for a short time with one thing changed.

python ablate.py data/ run/ ablations/ --minutes 2 --within 14

`run/` has the teacher and the w1a8 model. Each variant takes `--minutes` of training and is begun
only if it can end `--within` the minutes. Several of these, each on its own GPU, share the work:
a variant belongs to whoever makes its folder. ablations/ablations.json has what ended so far, as
bench/tables.py reads it; the commit in it is the variable BITM_COMMIT, or unknown.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

# Options of train.py, the most telling first.
VARIANTS: dict[str, list[str]] = {
    "baseline": [],
    "no hidden states": ["--states-until", "0"],
    "hidden states up to the end": ["--states-until", "1"],
    "gradual, 30 % of the time": ["--gradual", "0.3"],
    "gradients half a step further": ["--margin", "0.5"],
    "w1a8 model as teacher": ["--teacher", "w1a8"],
    "twice the learning rates": ["--rates", "2"],
    "begins as the float teacher": ["--start", "teacher"],
    "AdamW for the matrices": ["--optimizer", "adamw"],
    "half the batch": ["--rows", "512"],
    "half the learning rates": ["--rates", "0.5"],
    "begins as the float teacher, mean scales": ["--start", "teacher", "--scales", "mean"],
    "labels alone, no teacher": ["--labels", "1", "--states-until", "0"],
    "no labels": ["--labels", "0"],
}
# What a run takes besides training: to start, and to evaluate at the end.
EXTRA_MINUTES = 0.4


def folder_of(variant: str, args: argparse.Namespace) -> Path:
    """Where its state and log are."""
    return Path(args.out) / variant.replace(" ", "-").replace("%", "percent").replace(",", "")


def train(variant: str, args: argparse.Namespace) -> int:
    """Runs train.py, which writes into its log; gives its exit status."""
    folder = folder_of(variant, args)
    paths = ["--data", args.data, "--models", args.models, "--out", folder]
    minutes = ["--minutes", "0", "0", str(args.minutes)]
    program = [sys.executable, Path(__file__).with_name("train.py")]
    command = [*program, *paths, *minutes, *shlex.split(args.options), *VARIANTS[variant]]
    with (folder / "train.log").open("w", encoding="utf-8") as log:
        return subprocess.run(command, stdout=log, stderr=log).returncode


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """The facts of all variants that have ended."""
    results = {}
    for variant, changes in VARIANTS.items():
        path = folder_of(variant, args) / "w1a1/facts.json"
        facts = json.loads(path.read_text()) if path.exists() else {"finished": False}
        if facts.pop("finished"):
            results[variant] = {"options": " ".join(changes), **facts}
    return results


def main() -> None:
    """See the module's text."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--within", type=float, required=True)
    parser.add_argument("--options", default="", help="of train.py, for all of them")
    args = parser.parse_args()
    for variant in VARIANTS:
        minutes_used = (time.monotonic() - begin) / 60
        if minutes_used + args.minutes + EXTRA_MINUTES > args.within:
            break
        try:
            folder_of(variant, args).mkdir(parents=True)
        except FileExistsError:
            continue
        print(f"{variant}: exit status {train(variant, args)}", flush=True)
        results = {
            "command": "python examples/demo_model/ablate.py",
            "commit": os.environ.get("BITM_COMMIT", "unknown"),
            "date": datetime.date.today().isoformat(),
            "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
            "minutes": args.minutes,
            "variants": collect(args),
        }
        (args.out / "ablations.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
