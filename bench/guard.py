"""Counts the instructions of small fixed runs, and fails where they have become more.

python bench/guard.py build/gcc-release/bitm            compares with guard.json
python bench/guard.py build/gcc-release/bitm --update   writes it

Counts of callgrind are the same on every machine and in every run, which seconds are not.  They are
of one compiler's code, valgrind knows no instructions beyond AVX2, and they say nothing of memory:
what they guard is that work does not creep in.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import bitm_formats
from make_model import make_model

COUNTS = Path(__file__).with_name("guard.json")
TOLERANCE = 0.03
RUN = ("--threads", "1", "--repeat", "1", "--warmup", "0", "--length", "24")
TEXT = "The River flows into the caf\u00e9 [MASK], w1 w22 w333 w4444."


class Workload(NamedTuple):
    """A command of the tool, and the function inside of which instructions are counted."""

    function: str
    command: str
    model: str
    options: tuple[str, ...] = ()


WORKLOADS = {
    "int8": Workload("bitm_run", "bench", "float", (*RUN, "--activations", "int8")),
    "int11": Workload("bitm_run", "bench", "float", (*RUN, "--activations", "int11")),
    "int16": Workload("bitm_run", "bench", "float", (*RUN, "--activations", "int16")),
    "float32": Workload("bitm_run", "bench", "float", (*RUN, "--activations", "float32")),
    "sign": Workload("bitm_run", "bench", "sign", RUN),
    "int4": Workload("bitm_run", "bench", "int4", RUN),
    "open": Workload("bitm_model_open", "fill-mask", "float", (TEXT,)),
    "tokenize": Workload("bitm_tokenize", "fill-mask", "float", (TEXT,)),
    "top_k": Workload("bitm_run_top_k", "fill-mask", "float", ("--threads", "1", TEXT)),
}


def compiler(tool: Path) -> str:
    """The compiler that a program says it is of, for instance "gcc 12".

    Raises:
        SystemExit: it does not say.
    """
    found = re.search(rb"(GCC): \([^)]*\) (\d+)|(clang) version (\d+)", tool.read_bytes())
    if found is None:
        raise SystemExit(f"{tool} does not say which compiler it is of")
    return " ".join(part.decode().lower() for part in found.groups() if part)


def scalar_kernels(tool: Path) -> str:
    """What forces the scalar kernels."""
    listed = subprocess.run([tool, "kernels", "--json"], check=True, capture_output=True)
    kernels = json.loads(listed.stdout)["kernels"]
    return ",".join(f"{k['op']}=scalar" for k in kernels if k["variant"] == "scalar")


def count(command: list[str | Path], function: str, profile: Path) -> int:
    """Instructions of a program inside of a function; writes callgrind's profile.

    Raises:
        SystemExit: the program fails, or never enters the function.
    """
    valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}"]
    done = subprocess.run(
        [*valgrind, f"--toggle-collect={function}", *command], capture_output=True, text=True
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None or found[1] == "0":
        raise SystemExit(f"no instructions of {function} were counted:\n{done.stderr}")
    return int(found[1])


def count_all(tool: Path, folder: Path) -> dict[str, int]:
    """Instructions of every workload, and of those that run the network with scalar kernels."""
    for activations in {workload.model for workload in WORKLOADS.values()}:
        made = make_model("tiny", activations, "mlm")
        bitm_formats.write(folder / f"{activations}.bitm", made)
    scalar = scalar_kernels(tool)
    counts = {}
    for name, workload in WORKLOADS.items():
        model = folder / f"{workload.model}.bitm"
        command: list[str | Path] = [tool, workload.command, model, *workload.options]
        counts[name] = count(command, workload.function, folder / f"{name}.callgrind")
        if workload.function == "bitm_run":
            command += ["--kernels", scalar]
            profile = folder / f"{name} scalar.callgrind"
            counts[f"{name} scalar"] = count(command, workload.function, profile)
    return counts


def compare(counts: dict[str, int], expected: dict[str, int], folder: Path) -> list[str]:
    """Prints every workload's count beside the expected one; returns those that slowed down."""
    slower = []
    print(f"{'workload':16} {'expected':>12} {'counted':>12}")
    for name, counted in counts.items():
        change = counted / expected[name] - 1
        note = f"{change:+.1%}"
        if change > TOLERANCE:
            note += "  SLOWER"
            slower.append(name)
        elif change < -TOLERANCE:
            note += "  faster: --update keeps it so"
        print(f"{name:16} {expected[name]:12,} {counted:12,} {note}")
    for name in slower:
        profile = folder / f"{name}.callgrind"
        annotate = subprocess.run(["callgrind_annotate", profile], capture_output=True, text=True)
        shown = annotate.stdout
        functions = [line for line in shown.splitlines() if "???:" in line or ".c:" in line]
        print(f"\nMost of {name} is in", *functions[:12], sep="\n")
    return slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", type=Path, help="the program `bitm` of a release build")
    parser.add_argument("--update", action="store_true", help="expect these counts from now on")
    arguments = parser.parse_args()
    built_by = compiler(arguments.tool)
    expected = json.loads(COUNTS.read_text())
    if not arguments.update and built_by != expected["compiler"]:
        sys.exit(f"{COUNTS} counts code of {expected['compiler']}, this is of {built_by}")
    with tempfile.TemporaryDirectory() as temporary:
        counts = count_all(arguments.tool, Path(temporary))
        if arguments.update:
            document = {"compiler": built_by, "instructions": counts}
            COUNTS.write_text(json.dumps(document, indent=1) + "\n")
            return
        slower = compare(counts, expected["instructions"], Path(temporary))
    if slower:
        sys.exit(f"slower than {COUNTS} by more than {TOLERANCE:.0%}: {', '.join(slower)}")


if __name__ == "__main__":
    main()
