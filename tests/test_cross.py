"""The release folders of `make cross`: what is in them, and that they answer as this machine does.

Run by `make test-cross`, which builds them and says which there are.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT, run_command

TARGETS = os.environ.get("BITM_CROSS", "").split()
TEXT = "The river flows into the Atlantic [MASK]."
MOST_BYTES = 1_500_000  # of the program for a board
LIBC = {
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "ld-linux-aarch64.so.1",
    "ld-linux-armhf.so.3",
}
ELF_MACHINE = {"aarch64": 183, "armv7": 40, "x86_64": 62}
# Where Debian keeps the C library of another machine (libc6-arm64-cross, libc6-armhf-cross).
SYSROOT = {"aarch64": "/usr/aarch64-linux-gnu", "armv7": "/usr/arm-linux-gnueabihf"}

pytestmark = pytest.mark.skipif(
    not TARGETS, reason="expected: `make test-cross` builds for other machines and runs this"
)


def of_kind(*kinds: str) -> list[str]:
    return [target for target in TARGETS if target.partition("-")[2].rstrip("0123456789.") in kinds]


def folder(target: str) -> Path:
    return ROOT / "dist/cross" / target


def emulator(target: str) -> list[str]:
    """What runs a program of the target here."""
    machine, _, kind = target.partition("-")
    if machine == "x86_64":
        return []
    qemu = shutil.which(f"qemu-{machine.removesuffix('v7')}-static")
    assert qemu, "qemu-user-static is not installed"
    return [qemu] if kind == "musl" else [qemu, "-L", SYSROOT[machine]]


def readelf(*words: object) -> str:
    done = run_command("readelf", "--wide", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def newest_glibc(path: Path) -> tuple[int, ...]:
    """The version of glibc that a program or a library needs."""
    versions = re.findall(r"Name: GLIBC_([0-9.]+)", readelf("--version-info", path))
    return max(tuple(map(int, version.split("."))) for version in versions)


@pytest.fixture(scope="module")
def native() -> Path:
    """The build folder of this machine."""
    return ROOT / os.environ["BITM_NATIVE"]


@pytest.mark.parametrize("target", TARGETS)
def test_folder_is_complete(target: str) -> None:
    sums = (folder(target) / "SHA256SUMS").read_text().split()
    assert dict(zip(sums[1::2], sums[::2])) == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder(target).iterdir()
        if path.name != "SHA256SUMS"
    }
    names = {"bitm.h", "LICENSE", "libbitm.a"}
    if target.endswith("windows"):
        names |= {"bitm.exe", "bitm.dll", "libbitm.dll.a"}
    else:
        names |= {"bitm", "libbitm.dylib" if target.endswith("macos") else "libbitm.so"}
    assert set(sums[1::2]) == names


@pytest.mark.parametrize("target", of_kind("musl", "glibc"))
def test_programs_are_of_the_machine_and_need_libc_alone(target: str) -> None:
    machine, _, kind = target.partition("-")
    for name in ("bitm", "libbitm.so"):
        path = folder(target) / name
        header = path.read_bytes()[:20]
        assert header[:4] == b"\x7fELF"
        assert struct.unpack_from("<H", header, 18)[0] == ELF_MACHINE[machine]
        needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("--dynamic", path)))
        if kind == "musl":
            assert needed <= ({"libc.so"} if name == "libbitm.so" else set())
            assert "GLIBC" not in readelf("--version-info", path)
        else:
            assert needed <= LIBC
            most = tuple(map(int, kind.removeprefix("glibc").split(".")))
            assert newest_glibc(path) <= most
    assert (folder(target) / "bitm").stat().st_size < MOST_BYTES
    if kind == "musl":
        assert "INTERP" not in readelf("--program-headers", folder(target) / "bitm")


@pytest.mark.parametrize("target", of_kind("windows"))
def test_windows_build(target: str) -> None:
    for name in ("bitm.exe", "bitm.dll"):
        data = (folder(target) / name).read_bytes()
        (at,) = struct.unpack_from("<I", data, 60)
        assert data[at : at + 6] == b"PE\0\0\x64\x86"


@pytest.mark.parametrize("target", of_kind("macos"))
def test_macos_build(target: str) -> None:
    for name in ("bitm", "libbitm.dylib"):
        magic, cpu = struct.unpack_from("<II", (folder(target) / name).read_bytes())
        assert (magic, cpu) == (0xFEEDFACF, 0x0100000C)


@pytest.mark.parametrize("target", of_kind("musl", "glibc"))
def test_answers_are_those_of_this_machine(
    target: str, native: Path, small_model: Path, tmp_path: Path
) -> None:
    """From a folder that holds the program and the model alone, and without an environment."""
    shutil.copy(folder(target) / "bitm", tmp_path)
    shutil.copy(small_model, tmp_path / "small.bitm")
    for words in (["verify"], ["fill-mask", TEXT]):
        arguments = [words[0], "small.bitm", *words[1:]]
        expected = run_command(native / "bitm", *arguments, cwd=tmp_path)
        found = run_command(*emulator(target), "./bitm", *arguments, cwd=tmp_path, env={})
        assert found.returncode == 0, found.stderr
        assert found.stdout == expected.stdout


@pytest.mark.parametrize("target", of_kind("musl"))
def test_memory_is_told(target: str, small_model: Path) -> None:
    command = [*emulator(target), folder(target) / "bitm", "fill-mask", small_model, TEXT]
    told = json.loads(run_command(*command, "--threads=1", "--memory", "--json").stdout)
    parts = [n for key, n in told.items() if key.endswith("_bytes") and key != "total_bytes"]
    assert sum(parts) == told["total_bytes"]
    assert told["file_bytes"] == small_model.stat().st_size


def most_mapped(calls: str) -> int:
    """The most bytes that a program had mapped at a time, by qemu's log of its system calls."""
    size_of: dict[int, int] = {}  # of mappings, by their addresses
    heap_begin, heap, most = 0, 0, 0
    for name, listed, result in re.findall(
        r" (brk|mmap2?|munmap|mremap)\(([^()]*)\) = (\w+)", calls
    ):
        words = listed.split(",")
        if name == "brk":
            heap_begin = heap_begin or int(result, 0)
            heap = int(result, 0) - heap_begin
        elif name == "munmap":
            first, end = int(words[0], 0), int(words[0], 0) + int(words[1], 0)
            begin = max(address for address in size_of if address <= first)
            last = begin + size_of.pop(begin)
            parts = {begin: first - begin, end: last - end}
            size_of.update({address: size for address, size in parts.items() if size > 0})
        else:
            if name == "mremap":
                del size_of[int(words[0], 0)]
            size_of[int(result, 0)] = int(words[2 if name == "mremap" else 1], 0)
        most = max(most, heap + sum(size_of.values()))
    return most


@pytest.mark.parametrize("target", [t for t in of_kind("musl") if not t.startswith("x86_64")])
def test_no_more_memory_is_taken_than_told(target: str, small_model: Path) -> None:
    """All that the program maps, touched or not, its own segments, and a stack of 256 KiB, which is
    all that qemu gives it."""
    program, stack = folder(target) / "bitm", 256 << 10
    words = ["fill-mask", small_model, TEXT, "--threads=1"]
    told = json.loads(run_command(*emulator(target), program, *words, "--memory", "--json").stdout)
    done = run_command(*emulator(target), "-s", stack, "-strace", program, *words)
    assert done.returncode == 0
    assert done.stdout.split()[1] == "ocean"
    loads = re.findall(r"LOAD(?: +\w+){4} +(\w+)", readelf("--program-headers", program))
    taken = most_mapped(done.stderr) + sum(int(size, 0) for size in loads) + stack
    assert told["file_bytes"] + told["session_bytes"] < taken <= told["total_bytes"]


@pytest.mark.parametrize("target", of_kind("musl", "glibc"))
def test_example_answers_as_on_this_machine(target: str, native: Path, small_model: Path) -> None:
    expected = run_command(native / "embed_in_c", small_model, TEXT)
    assert re.fullmatch(r"ocean 0\.8\d+\n", expected.stdout)
    built = ROOT / "build/cross" / target / "embed_in_c"
    found = run_command(*emulator(target), built, small_model, TEXT)
    assert found.returncode == 0, found.stderr
    assert found.stdout == expected.stdout


@pytest.mark.parametrize(("platform", "machine"), [("aarch64", 183), ("armv7l", 40)])
def test_wheel(platform: str, machine: int, tmp_path: Path) -> None:
    (path,) = (ROOT / "dist/cross").glob(f"bitm-*-py3-none-manylinux_2_17_{platform}.whl")
    with zipfile.ZipFile(path) as wheel:
        wheel.extractall(tmp_path)
    (record,) = tmp_path.glob("*.dist-info/RECORD")
    with record.open(newline="") as lines:
        rows = list(csv.reader(lines))
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert {name for name, _, _ in rows} == files
    for name, digest, size in rows:
        if name == str(record.relative_to(tmp_path)):
            continue
        data = (tmp_path / name).read_bytes()
        expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        assert (digest, int(size)) == (f"sha256={expected}", len(data))
    library = tmp_path / "bitm/libbitm.so"
    assert struct.unpack_from("<H", library.read_bytes(), 18)[0] == machine
    assert newest_glibc(library) <= (2, 17)
    assert [name for name in files if name.endswith(".so")] == ["bitm/libbitm.so"]


def test_example_is_short() -> None:
    assert len((ROOT / "examples/embed_in_c/fill.c").read_text().splitlines()) < 80


def test_library_builds_with_one_command(tmp_path: Path, small_model: Path) -> None:
    """The command line of docs/boards.md, for boards without CMake."""
    text = (ROOT / "docs/boards.md").read_text()
    (command,) = re.findall(r"^```sh\n(cc (?:.*\\\n)*.*)\n```$", text, re.MULTILINE)
    shutil.copytree(ROOT / "native", tmp_path / "native")
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True)
    done = run_command(tmp_path / "bitm", "fill-mask", small_model, TEXT)
    assert done.stdout.split()[1] == "ocean"
