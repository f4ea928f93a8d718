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
    paths = [Path(folder) / "libbitm.so" for folder in _native._library_folders()]
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
    allowed = r"(lib(c|dl|m|pthread)|ld-linux-[\w-]+)\.so\.\d+"
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


# ---- Growth ----

# Uses every struct that begins with struct_size, and prints what comes back.
PROGRAM = r"""
#include <stdio.h>
#include "bitm.h"

int main(int argc, char **argv)
{
    bitm_error err;
    bitm_model_options model_options = {.struct_size = sizeof model_options};
    bitm_model_properties properties = {.struct_size = sizeof properties};
    bitm_session_options options = {.struct_size = sizeof options, .max_length = 4, .n_threads = 1};
    bitm_model *model;
    bitm_session *session;
    int32_t ids[4] = {1, 2, 3, 4}, position = 2;
    bitm_batch batch = {.struct_size = sizeof batch, .n_sequences = 1, .length = 4,
                        .n_positions = 1, .input_ids = ids, .positions = &position};
    bitm_prediction best[3];
    if (argc != 2 || bitm_model_open(argv[1], &model_options, &model, &err) != BITM_OK ||
        bitm_model_info(model, &properties, &err) != BITM_OK ||
        bitm_session_create(model, &options, &session, &err) != BITM_OK ||
        bitm_run_top_k(session, &batch, 3, NULL, 0, best, 3, &err) != BITM_OK) {
        printf("%s\n", err.message);
        return 1;
    }
    printf("%u %u", properties.vocab_size, properties.quantizes_activations);
    for (int i = 0; i < 3; i++) printf(" %d %a", best[i].token, best[i].score);
    bitm_session_free(session);
    bitm_model_close(model);
    return 0;
}
"""


@pytest.fixture(scope="module")
def newer_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of a later version: every struct that can grow has grown."""
    source = tmp_path_factory.mktemp("newer") / "native"
    shutil.copytree(ROOT / "native", source)
    header = source / "include/bitm.h"
    grown, n = re.subn(
        r"(typedef struct \w+ \{\n    uint32_t struct_size;.*?)(\n\} \w+;)",
        r"\1\n    uint64_t appended[3];\2",
        header.read_text(),
        flags=re.DOTALL,
    )
    assert n == len([s for s in structs().values() if s.fields[0][0] == "struct_size"]) >= 4
    header.write_text(grown)
    return source


def build_program(include: Path, library: Path, folder: Path) -> Path:
    """The program, built against one header and bound to one library."""
    (folder / "program.c").write_text(PROGRAM)
    program = folder / "program"
    run(
        *(needs_tool("cc"), "-std=c11", "-I", include, folder / "program.c"),
        *("-o", program, library, f"-Wl,-rpath,{library.parent}"),
    )
    return program


@pytest.fixture(scope="module")
def newer_library(newer_source: Path) -> Path:
    build = newer_source.parent / "build"
    run(needs_tool("cmake"), "-S", newer_source, "-B", build, "-DCMAKE_BUILD_TYPE=Debug")
    run("cmake", "--build", build, "--target", "bitm_shared", "--parallel", "2")
    return build / "libbitm.so"


def test_programs_run_with_a_newer_library(
    newer_library: Path, tiny_model: Path, tmp_path: Path
) -> None:
    answers = set()
    for library in (library_path(), newer_library):
        folder = tmp_path / library.parent.name
        folder.mkdir()
        answers.add(run(build_program(HEADER.parent, library, folder), tiny_model))
    assert len(answers) == 1


def test_programs_of_a_newer_header_run_with_this_library(
    newer_source: Path, newer_library: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """As long as they leave what has been appended at 0."""
    new = build_program(newer_source / "include", library_path(), tmp_path)
    expected = run(new, tiny_model)
    old = tmp_path / "old"
    old.mkdir()
    assert expected == run(build_program(HEADER.parent, newer_library, old), tiny_model)
