"""The C tests and the hashes of whole models on emulated ARM processors.

python tests/check_arm.py NATIVE_BITM AARCH64_BUILD ARMV7_BUILD

For each processor: every kernel that it can run against the scalar one (checkkernels), and the
hashes of `bitm verify`, with the kernels that the processor chooses and with each tier forced,
which must be those of this machine's `bitm`.  Models: random ones of every kind of activations,
and the small trained one where its checkpoint is at hand.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT.parent / "shared/checkpoints/w1-small-en"
ACTIVATIONS = ("float", "sign", "int4")
# Processors as qemu names them, with a tier that each has to offer.
AARCH64 = {"cortex-a53": "neon", "cortex-a72": "neon", "cortex-a76": "dotprod", "max": "i8mm"}
ARMV7 = {"cortex-a15": "neon"}
CODE_PRODUCTS = ("gemm_w1a8", "gemm_w1a16")


def run(*command: str | Path) -> str:
    """What a command prints; its failure ends the check with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(
            f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def make_models(folder: Path) -> list[Path]:
    """The models whose hashes are compared."""
    models = []
    for activations in ACTIVATIONS:
        models.append(folder / f"tiny-{activations}.bitm")
        command = (sys.executable, ROOT / "bench/make_model.py", "--size", "tiny")
        run(*command, "--activations", activations, "--head", "mlm", "-o", models[-1])
    if CHECKPOINT.exists():
        models.append(folder / "small.bitm")
        run("bitm-convert", CHECKPOINT, models[-1])
    return models


def hashes(*command: str | Path) -> list[str]:
    """The lines of `bitm verify` behind the file's name."""
    return run(*command).splitlines()[1:]


def check_processor(
    emulator: list[str | Path], build: Path, tier: str, expected: dict[Path, list[str]]
) -> int:
    """Checks one processor; returns how many checks it passed."""
    tests = run(*emulator, build / "tests/checkkernels").splitlines()
    if not any(f"={tier} " in line and " passed" in line for line in tests):
        sys.exit(f"{emulator}: no kernel of {tier} was tested")
    count = int(tests[-1].split()[0])
    for model, lines in expected.items():
        if hashes(*emulator, build / "bitm", "verify", model) != lines:
            sys.exit(f"{emulator}: other hashes than here: {model.name}")
        count += 1
    small, lines = next(iter(expected.items()))
    offered = {line.split()[0] for line in tests if "=" in line and " passed" in line}
    for variant in {kernel.partition("=")[2] for kernel in offered}:
        forced = [f"{op}={variant}" for op in CODE_PRODUCTS if f"{op}={variant}" in offered]
        command = (*emulator, build / "bitm", "verify", small, "--kernels", ",".join(forced))
        if hashes(*command) != lines:
            sys.exit(f"{emulator}: other hashes than here with {forced}")
        count += 1
    return count


def main() -> None:
    native, aarch64, armv7 = map(Path, sys.argv[1:])
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        expected = {model: hashes(native, "verify", model) for model in make_models(Path(folder))}
        processors = [("qemu-aarch64-static", aarch64, AARCH64), ("qemu-arm-static", armv7, ARMV7)]
        for emulator, build, names in processors:
            for name, tier in names.items():
                count = check_processor([emulator, "-cpu", name], build, tier, expected)
                print(f"{name:<12} {count} checks passed", flush=True)
                total += count
    print(f"{total} passed, 0 failed")


if __name__ == "__main__":
    main()
