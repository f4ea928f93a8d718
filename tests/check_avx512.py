"""The kernels of AVX-512, VNNI, VPOPCNTDQ and AMX on an emulated computer that has them.

python tests/check_avx512.py BUILD EMULATOR

No processor with them need be at hand: Bochs (the folder EMULATOR, made by emulator/build.sh) runs
Linux with the programs of BUILD.  There every kernel is compared with the scalar one
(checkkernels), and each tier's `bitm verify` must print the hashes that this machine prints.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from check_arm import ACTIVATIONS, ROOT, hashes, run

TIERS = ("avx512", "vnni", "permute", "vpopcnt", "amx")
SECONDS = 3600
MEMORY = 256 << 20  # also in boot.S, as are the following two
BOOT_PARAMETERS = 0x10000
KERNEL = 0x100000
COMMAND_LINE = 0x20000
INITIAL_FILES = MEMORY // 2
# A panic and a restart end the emulator; no message of the kernel comes between the programs'.
OPTIONS = (
    "console=ttyS0 quiet acpi=off nokaslr intel_idle.max_cstate=0 mitigations=off panic=-1"
    " reboot=triple"
)
MACHINE = """\
cpu: model=sapphire_rapids, ips=100000000, reset_on_triple_fault=0
memory: guest=256, host=256, block_size=1024
clock: sync=none
romimage: file=boot.rom, address=0xffff0000
vgaromimage: file=vga.rom
optramimage1: file=memory, address=0
ata0: enabled=0
floppya: type=none
com1: enabled=1, mode=file, dev=serial
display_library: nogui
log: log
panic: action=fatal
"""


def kernel_names() -> dict[str, list[str]]:
    """The kernels, op=variant, of each tier."""
    listed = (ROOT / "native/src/kernels/kernels.def").read_text()
    found = re.findall(r"^BITM_KERNEL\((\w+), (\w+),", listed, re.MULTILINE)
    return {tier: [f"{op}={variant}" for op, variant in found if variant == tier] for tier in TIERS}


def make_script(models: list[Path]) -> str:
    """What the emulated computer runs: the checks, each behind a line that names it."""
    lines = ["#!/bin/busybox sh", "/bin/busybox mount -t proc proc /proc"]
    for tier, kernels in kernel_names().items():
        lines += [f"/bin/checkkernels --seed 1 {kernel}" for kernel in kernels]
        for model in models:
            lines += [
                f"echo == {model.name} {tier}",
                f"/bin/bitm verify /{model.name} --threads 1 --kernels {','.join(kernels)}",
            ]
    return "\n".join([*lines, "/bin/busybox sleep 5", "/bin/busybox reboot -f"]) + "\n"


def libraries(program: Path) -> list[Path]:
    """The shared libraries of a program, its loader among them."""
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", run("ldd", program))]


def archive(files: dict[str, bytes]) -> bytes:
    """Files, and the folders around them, as Linux unpacks them at its start (cpio, newc)."""
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    entries = [(name, 0o40755, b"", (0, 0)) for name in sorted({*folders, "dev", "proc", "tmp"})]
    entries.append(("dev/console", 0o20600, b"", (5, 1)))
    entries += [(name, 0o100755, data, (0, 0)) for name, data in files.items()]
    out = bytearray()
    for number, (name, mode, data, device) in enumerate([*entries, ("TRAILER!!!", 0, b"", (0, 0))]):
        text = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(text), 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + text
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def write_memory(path: Path, kernel: bytes, files: bytes) -> None:
    """The memory in which boot.S finds the kernel, its parameters and the first files."""
    parameters = bytearray(4096)
    end_of_header = 0x202 + kernel[0x201]
    parameters[0x1F1:end_of_header] = kernel[0x1F1:end_of_header]
    parameters[0x210] = 0xFF  # a loader without a number
    struct.pack_into("<II", parameters, 0x218, INITIAL_FILES, len(files))
    struct.pack_into("<I", parameters, 0x228, COMMAND_LINE)
    parameters[0x1E8] = 2  # parts of the memory that may be used: address, size, kind
    struct.pack_into("<QQI", parameters, 0x2D0, 0, 0x9F000, 1)
    struct.pack_into("<QQI", parameters, 0x2D0 + 20, KERNEL, MEMORY - KERNEL, 1)
    with path.open("wb") as memory:
        for address, part in {
            BOOT_PARAMETERS: bytes(parameters),
            COMMAND_LINE: OPTIONS.encode() + b"\0",
            KERNEL: kernel[(kernel[0x1F1] + 1) * 512 :],
            INITIAL_FILES: files,
        }.items():
            memory.seek(address)
            memory.write(part)


def emulate(emulator: Path, files: dict[str, bytes], folder: Path) -> list[str]:
    """Runs /init of the files; returns what it printed."""
    write_memory(folder / "memory", (emulator / "vmlinuz").read_bytes(), archive(files))
    shutil.copy(emulator / "boot.rom", folder)
    (folder / "vga.rom").write_bytes(b"\x55\xaa\x01" + bytes(509))  # adds up to 0, as it must
    (folder / "machine").write_text(MACHINE)
    try:
        subprocess.run(
            [emulator / "bochs", "-q", "-f", "machine"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,  # a computer that turns itself off is an error to Bochs
        )
    except subprocess.TimeoutExpired:
        print(f"ended after {SECONDS} seconds")
    return (folder / "serial").read_text(errors="replace").splitlines()


def main() -> None:
    build, emulator = (Path(argument).resolve() for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = [folder / f"tiny-{activations}.bitm" for activations in ACTIVATIONS]
        for model, activations in zip(models, ACTIVATIONS):
            command = (sys.executable, ROOT / "bench/make_model.py", "--size", "tiny")
            run(*command, "--activations", activations, "--head", "mlm", "-o", model)
        expected = {model.name: hashes(build / "bitm", "verify", model) for model in models}
        programs = [build / "tests/checkkernels", build / "bitm"]
        files = {"init": make_script(models).encode()}
        files |= {
            f"bin/{path.name}": path.read_bytes() for path in [*programs, emulator / "busybox"]
        }
        for library in {found for program in programs for found in libraries(program)}:
            files[str(library).lstrip("/")] = library.read_bytes()
        files |= {model.name: model.read_bytes() for model in models}
        printed = emulate(emulator, files, folder)

    count = 0
    for kernel in (kernel for kernels in kernel_names().values() for kernel in kernels):
        lines = [
            line for line in printed if re.match(rf"{kernel} +[1-9]\d* passed, 0 failed$", line)
        ]
        if len(lines) != 1:
            sys.exit("\n".join([*printed, f"{kernel} was not found to be right"]))
        print(lines[0])
        count += int(lines[0].split()[1])
    for name, lines in expected.items():
        for tier in TIERS:
            title = f"== {name} {tier}"
            begin = printed.index(title) + 2 if title in printed else len(printed)
            if printed[begin : begin + len(lines)] != lines:
                sys.exit("\n".join([*printed, f"{title}: other hashes than here:", *lines]))
            print(f"{title[3:]}: the hashes of this machine")
            count += 1
    print(f"{count} passed, 0 failed")


if __name__ == "__main__":
    main()
