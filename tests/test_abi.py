"""The public header, the library that is installed, and what Python thinks of both are one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitm import _native
from bitm._cdef import ffi
from bitm_formats import Status

ROOT = Path(__file__).resolve().parents[1]
HEADER = ROOT / "native/include/bitm.h"


def header_code() -> str:
    """The header without comments."""
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)


def run(*command: object, **options: Any) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def needs_tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def statuses() -> dict[str, int]:
    """Name (with its prefix) and number of each status in the header."""
    enum = re.search(r"typedef enum bitm_status \{(.*?)\}", header_code(), re.DOTALL)
    assert enum is not None
    return {name: int(number) for name, number in re.findall(r"(BITM_\w+) = (\d+)", enum[1])}


# ---- The header ----


@pytest.mark.parametrize(
    ("compiler", "language", "standard"), [("cc", "c", "c11"), ("c++", "c++", "c++17")]
)
def test_header_compiles_alone(compiler: str, language: str, standard: str) -> None:
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    run(
        needs_tool(compiler),
        f"-std={standard}",
        *warnings,
        "-fsyntax-only",
        *("-I", HEADER.parent, "-x", language, "-"),
        input='#include "bitm.h"\n',
    )


def test_cdef_is_current() -> None:
    run(sys.executable, ROOT / "native/tools/make_cdef.py", "--check")


# ---- The library ----


def library_path() -> Path:
    """The shared library that bitm has loaded."""
    paths = [folder / "libbitm.so" for folder in _native._library_folders()]
    found = [path for path in paths if path.exists()]
    if not found:
        pytest.skip("expected: symbols are read from an ELF library, and this system has none")
    return found[0]


def test_library_exports_the_header() -> None:
    declared = set(re.findall(r"BITM_API[^;(]*?\b(bitm_\w+)\s*\(", header_code()))
    lines = run(needs_tool("nm"), "-D", "--defined-only", library_path()).splitlines()
    exported = {line.split()[-1] for line in lines}
    assert declared
    assert exported == declared


def test_library_needs_libc_alone() -> None:
    listing = run(needs_tool("readelf"), "-d", library_path())
    needed = set(re.findall(r"\(NEEDED\).*\[(.*?)\]", listing))
    allowed = r"(lib(c|m|pthread)|ld-linux-[\w-]+)\.so\.\d+"
    assert all(re.fullmatch(allowed, name) for name in needed), needed


def structs() -> dict[str, Any]:
    """The structs that the header defines, as cffi has them."""
    names = re.findall(r"typedef struct (\w+) \{", header_code())
    return {name: ffi.typeof(name) for name in names}


def enums() -> dict[str, int]:
    """Every constant of the header, as cffi has it."""
    types = [ffi.typeof(name) for name in ffi.list_types()[0]]
    return {
        constant: number
        for enum in types
        if enum.kind == "enum"
        for number, constant in enum.elements.items()
    }


def test_layouts_are_the_compilers(tmp_path: Path) -> None:
    expected: dict[str, int] = dict(enums())
    for name, struct in structs().items():
        expected[f"sizeof({name})"] = ffi.sizeof(struct)
        for field, place in struct.fields:
            expected[f"offsetof({name}, {field})"] = place.offset
            expected[f"sizeof((({name} *)0)->{field})"] = ffi.sizeof(place.type)
    prints = "\n".join(f'printf("%lld\\n", (long long)({key}));' for key in expected)
    source = tmp_path / "layouts.c"
    source.write_text(
        f'#include <stdio.h>\n#include "bitm.h"\nint main(void) {{\n{prints}\nreturn 0;\n}}\n'
    )
    run(needs_tool("cc"), "-std=c11", "-I", HEADER.parent, source, "-o", tmp_path / "layouts")
    found = [int(line) for line in run(tmp_path / "layouts").splitlines()]
    assert dict(zip(expected, found)) == expected
    assert len(structs()) >= 8


# ---- Statuses ----


def test_statuses_of_files_are_the_same_in_python() -> None:
    of_files = {name[5:]: n for name, n in statuses().items() if name.startswith("BITM_FILE_")}
    assert of_files == {status.name: int(status) for status in Status}


def test_every_status_has_its_name() -> None:
    numbers = statuses()
    assert len(numbers) == len(set(numbers.values()))
    for name, number in numbers.items():
        assert ffi.string(_native.lib.bitm_status_name(number)).decode() == name[5:]
