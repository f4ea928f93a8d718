"""Predicts BERT-base's times on Raspberry Pi 3, 4 and 5, where no board is at hand.

python bench/arm_cycles.py --output bench/results/arm_cycles.json

Two parts, both from the code as compiled:

- llvm-mca tells the cycles of each kernel's inner loop on Cortex-A53, A72 and A76 (by the model of
  Neoverse N1, the same core for servers; LLVM has none of A76), and from them the work a cycle,
  beside the bound of the unit that limits it.
- qemu runs a BERT-base of random weights and a plugin counts executed instructions by function:
  what a kernel executes, loop and all around it, times the cycles of an instruction in its loop.
  Functions without a loop here run at the average of the others.

Caches and memory are not in it.  Four threads share every stage evenly at these sizes.

Needs aarch64-linux-gnu-gcc, llvm-mca of LLVM 17 or later, and qemu-user from 4.2 to 8.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import tables
from machine import provenance, write_results

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "native/src/kernels"
FLAGS = ["-O3", "-DNDEBUG", "-std=c11", "-ffp-contract=off", "-fno-math-errno"]
DEFINITIONS = ["-DBITM_HAVE_NEON=1", "-DBITM_HAVE_DOTPROD=1", "-DBITM_HAVE_I8MM=1"]
ITERATIONS = 200

LINEAR_MACS = 12 * (4 * 768 * 768 + 2 * 768 * 3072)  # of a token in BERT-base's encoder


@dataclass(frozen=True)
class Core:
    """A core in a board: llvm-mca's model, and one for qemu that chooses the same kernels."""

    name: str
    model: str
    emulated: str
    board: str
    ghz: float


CORES = (
    Core("Cortex-A53", "cortex-a53", "cortex-a72", "Raspberry Pi 3B+", 1.4),
    Core("Cortex-A72", "cortex-a72", "cortex-a72", "Raspberry Pi 4", 1.5),
    Core("Cortex-A76", "neoverse-n1", "cortex-a76", "Raspberry Pi 5", 2.4),
)


@dataclass(frozen=True)
class Loop:
    """The inner loop of a kernel, found in its function's assembly.

    Of the loops with `key` and without `without`, it is the one that executes the fewest `shared`
    for each `key`: the one of full tiles.  `work` is that of one `key`.
    """

    op: str
    variant: str
    file: str
    key: str
    work: int
    unit: str
    shared: str = "ldr"
    without: str = "-"
    bounds: tuple[float, float, float] | None = None  # work a cycle on each core, of MACs

    @property
    def function(self) -> str:
        """The kernel's symbol."""
        return f"bitm_{self.op}__{self.variant}"


# Bounds: 3 operations (eor, cnt, add) for 128 multiply-adds; 2 (and, sadalp) for 16; 3 (smull,
# smlal, sadalp) for 16 of attention; sdot, 16; fmla, 4.  Vector operations of 128 bits a cycle:
# A53 1, A72 and A76 2; sadalp, smull, and fmla on A72, 1.
LOOPS = (
    Loop(
        "gemm_w1sign",
        "neon",
        "neon_bits",
        "cnt",
        128,
        "MAC",
        "ldr",
        "and",
        (128 / 3, 256 / 3, 256 / 3),
    ),
    Loop(
        "gemm_w1planes",
        "neon",
        "neon_bits",
        "cnt",
        128,
        "MAC",
        "ldr",
        "eor",
        (128 / 3, 256 / 3, 256 / 3),
    ),
    Loop("gemm_w1a8", "neon", "neon_codes", "sadalp", 16, "MAC", "cmtst", "eor", (8, 16, 16)),
    Loop("gemm_w1a8", "dotprod", "dotprod", "sdot", 16, "MAC", "cmtst", "-", (0, 0, 32)),
    Loop("attention", "neon", "neon_floats", "fmla", 4, "MAC", "ldr", "ldp", (4, 4, 8)),
    Loop(
        "attention_i8",
        "neon",
        "neon_attention_i8",
        "sadalp",
        16,
        "MAC",
        "ldr",
        "-",
        (16 / 3, 8, 8),
    ),
    Loop(
        "attention_i8",
        "dotprod",
        "dotprod_attention_i8",
        "sdot",
        16,
        "MAC",
        "ldr",
        "-",
        (0, 0, 32),
    ),
    Loop("dot_planes", "neon", "neon_bits", "cnt", 128, "MAC", "ldr", "-"),
    Loop("quantize", "neon", "neon_quantize", "fcmge", 4, "value", "fcmge", "fcmgt"),
    Loop("gelu_bits", "neon", "neon_quantize", "fcmge", 4, "value", "fcmge", "-"),
    Loop("quantize_i8", "neon", "neon_quantize", "fcvtzs", 4, "value", "fcvtzs", "-"),
    Loop("activate", "neon", "neon_tokens", "shl", 4, "value", "shl", "fdiv"),
    Loop("sign_distances", "neon", "neon_signs", "cnt", 2, "value", "cnt", "-"),
    Loop("table_sum", "neon", "neon_signs", "tbl", 4, "value", "tbl", "-"),
    Loop("exp_sum", "neon", "neon_tokens", "shl", 4, "value", "shl", "-"),
    Loop("add_norm", "neon", "neon_tokens", "fmla", 4, "value", "fmla", "fsub"),
)

# The models of bench/make_model.py: their activations, and the mode that runs them.
MODELS = (("W1A1", "sign", "int8"), ("W1A8", "float", "int8"))
LENGTHS = (64, 128)
ONCE = ["--threads", "1", "--warmup", "0", "--repeat", "1", "--positions", "none"]


def run(command: Sequence[object], **options: Any) -> str:
    """What a command prints; its failure ends this program with its message."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}: {done.stderr.strip()}")
    return str(done.stdout)


# ---- Loops ----


def opcode(line: str) -> str:
    return line.split()[0]


def function_code(assembly: str, function: str) -> tuple[list[str], dict[str, int]]:
    """The instructions of a function, and the places of its labels in them."""
    match = re.search(rf"^{function}:\n(.*?)\n\s*\.cfi_endproc", assembly, re.DOTALL | re.MULTILINE)
    if match is None:
        sys.exit(f"{function} is not in the assembly")
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in match[1].splitlines():
        label = re.match(r"(\.L\w+):", line)
        if label:
            labels[label[1]] = len(code)
        elif re.match(r"\s+[a-z]", line):
            # gcc writes immediates of bytes as 64 bits, which llvm-mca does not read.
            code.append(re.sub(r"0xf{14}(?=..$)", "0x", line.strip()))
    return code, labels


def inner_loops(assembly: str, function: str) -> list[list[str]]:
    """The bodies of a function's loops that contain no other."""
    code, labels = function_code(assembly, function)
    spans = set()
    for place, line in enumerate(code):
        jump = re.match(r"(?:b\.?\w+|b|cbn?z|tbn?z)\s.*?(\.L\w+)$", line)
        if jump and labels.get(jump[1], len(code)) <= place:
            spans.add((labels[jump[1]], place + 1))
    return [
        code[first:end]
        for first, end in spans
        if not any((a, b) != (first, end) and first <= a and b <= end for a, b in spans)
    ]


def find_loop(assembly: str, loop: Loop) -> list[str]:
    """The body of a kernel's inner loop."""
    best: tuple[tuple[float, int], list[str]] | None = None
    for body in inner_loops(assembly, loop.function):
        counts = Counter(map(opcode, body))
        if 0 in (counts[loop.key], counts[loop.shared]) or counts[loop.without] > 0:
            continue
        rank = (counts[loop.shared] / counts[loop.key], -counts[loop.key])
        if best is None or rank < best[0]:
            best = rank, body
    if best is None:
        sys.exit(f"{loop.function} has no loop with {loop.key}")
    return best[1]


def cycles_of(mca: str, core: Core, body: list[str]) -> float:
    """The cycles of one turn of a loop."""
    flags = ["-mtriple=aarch64", f"-mcpu={core.model}", "-mattr=+dotprod"]
    report = run(
        [mca, *flags, f"-iterations={ITERATIONS}", "-instruction-info=0", "-resource-pressure=0"],
        input="\n".join(body) + "\n",
    )
    match = re.search(r"Total Cycles:\s+(\d+)", report)
    assert match is not None, report
    return int(match[1]) / ITERATIONS


def measure_loops(compiler: str, mca: str, folder: Path) -> list[dict[str, Any]]:
    """Instructions and cycles of every loop on every core that has its instructions."""
    results = []
    for loop in LOOPS:
        assembly = folder / f"{loop.file}.s"
        if not assembly.exists():
            is_dotprod = loop.variant == "dotprod"  # flags of native/cmake/isa.cmake
            flags = ["-march=armv8.2-a+dotprod"] if is_dotprod else ["-mtune=cortex-a72"]
            source = KERNELS / f"arm_{loop.file}.c"
            includes = ["-I", ROOT / "native/include"]
            run([compiler, *FLAGS, *flags, *DEFINITIONS, *includes, "-S", source, "-o", assembly])
        body = find_loop(assembly.read_text(), loop)
        work = Counter(map(opcode, body))[loop.key] * loop.work
        result: dict[str, Any] = {
            "kernel": f"{loop.op}={loop.variant}",
            "function": loop.function,
            "unit": loop.unit,
            "instructions": len(body),
            "work": work,
            "cycles": {},
            "work_per_cycle": {},
            "bound": {},
        }
        for place, core in enumerate(CORES):
            if loop.variant == "dotprod" and core.name != "Cortex-A76":
                continue
            cycles = cycles_of(mca, core, body)
            result["cycles"][core.name] = cycles
            result["work_per_cycle"][core.name] = round(work / cycles, 2)
            if loop.bounds is not None:
                result["bound"][core.name] = round(loop.bounds[place], 1)
        results.append(result)
    return results


# ---- Whole runs ----


def count_instructions(
    emulator: str, plugin: Path, processor: str, tool: Path, model: Path, arguments: list[str]
) -> Counter[str]:
    """Executed instructions of a run by function, those of opening the model left out."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [emulator, "-cpu", processor, "-plugin", plugin, "-d", "plugin", "-D", log, tool]
        for sign, what in ((1, ["bench", model, *arguments]), (-1, ["info", model])):
            run([*command, *what])
            for line in log.read_text().splitlines():
                count, name = line.split(maxsplit=1)
                found[name] += sign * int(count)
    return +found


def predict(counts: Counter[str], loops: list[dict[str, Any]], core: Core, length: int) -> Any:
    """Milliseconds of a run on one core: of the linears' products, and of all."""
    cycles, n_known = 0.0, 0
    linears, bound = 0.0, 0.0
    by_function = {loop["function"]: loop for loop in loops}
    macs = {"gemm_w1planes": LINEAR_MACS // 3}
    for function, count in counts.items():
        loop = by_function.get(function)
        if loop is None or core.name not in loop["cycles"]:
            continue
        spent = count * loop["cycles"][core.name] / loop["instructions"]
        cycles += spent
        n_known += count
        op = loop["kernel"].partition("=")[0]
        if op.startswith("gemm_w1"):
            linears += spent
            share = macs.get(op, LINEAR_MACS - (macs["gemm_w1planes"] if "sign" in op else 0))
            bound += share * length / loop["bound"][core.name]
    everything = cycles * counts.total() / n_known
    to_ms = 1e-6 / core.ghz
    return {
        "board": core.board,
        "ghz": core.ghz,
        "instructions": counts.total(),
        "bound_ms": round(bound * to_ms, 1),
        "linears_ms": round(linears * to_ms, 1),
        "one_thread_ms": round(everything * to_ms, 1),
        "four_threads_ms": round(everything * to_ms / 4, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--compiler", default="aarch64-linux-gnu-gcc")
    parser.add_argument("--mca", default="llvm-mca-19")
    parser.add_argument("--emulator", default="qemu-aarch64")
    parser.add_argument("--tool", default="build/aarch64-linux-gnu/bitm", type=Path)
    parser.add_argument(
        "--models", default="build", type=Path, help="where models are, or are made"
    )
    parser.add_argument("--output", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loops = measure_loops(arguments.compiler, arguments.mca, folder)
        plugin = folder / "count.so"
        run(["gcc", "-shared", "-fPIC", "-O2", ROOT / "bench/qemu_count.c", "-o", plugin])
        runs = []
        for model, activations, mode in MODELS:
            path = arguments.models / f"base_{activations}.bitm"
            if not path.exists():
                command = [sys.executable, ROOT / "bench/make_model.py", "--size", "base", "--head"]
                run([*command, "none", "--activations", activations, "-o", path])
            for length in LENGTHS:
                options = ["--length", str(length), "--activations", mode, *ONCE]
                for emulated, cores in groupby(CORES, lambda core: core.emulated):
                    counts = count_instructions(
                        arguments.emulator, plugin, emulated, arguments.tool, path, options
                    )
                    for core in cores:
                        found = predict(counts, loops, core, length)
                        runs.append({"model": model, "length": length, **found})
    document = {
        **provenance("python bench/arm_cycles.py"),
        "compiler": run([arguments.compiler, "--version"]).splitlines()[0],
        "mca": run([arguments.mca, "--version"]).splitlines()[0].strip(),
        "loops": loops,
        "runs": runs,
    }
    print(tables.arm_cycles(document))
    if arguments.output is not None:
        write_results(arguments.output, document)


if __name__ == "__main__":
    main()
