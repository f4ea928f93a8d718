"""The rules that sources keep: who imports and includes whom, and what they look like.

CONTRIBUTING.md says why; a rule that has to be broken is changed here, with its reason.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "native/src"
KERNELS = SRC / "kernels"

# Besides the standard library and itself.
MAY_IMPORT = {
    "formats/bitm_formats": {"numpy"},
    "runtime/bitm": {"numpy", "cffi", "_cffi_backend", "bitm_formats"},
    "converter/bitm_converter": {
        "numpy",
        "safetensors",
        "transformers",
        "tokenizers",
        "bitm_formats",
    },
}
# A file that may import more than its package.
MAY_IMPORT_TOO = {
    "converter/bitm_converter/verify.py": {"bitm"},
    "runtime/bitm/evaluation/plots.py": {"matplotlib"},  # the extra `plot`
    **{
        f"converter/bitm_converter/training/{name}.py": {"torch"}
        for name in (
            "attention",
            "losses",
            "loop",
            "modules",
            "packed",
            "processes",
            "rounding",
            "saving",
        )
    },
}

# What kernels and their selection may include, besides a header of their own tier.
KERNEL_INCLUDES = {"kernels.h", "canonical.h", "cpu.h", "file.h", "kernels.def"}
# Tiers that contain another one, whose header they share.
CONTAINED_TIER = {
    "x86_vnni": "x86_avx512",
    "x86_permute": "x86_avx512",
    "x86_vpopcnt": "x86_avx512",
    "x86_amx": "x86_avx512",
}
# One source serves two architectures, a header several tiers.
ARM_INCLUDES = {"arm_neon.h", "arm_codes.h", "arm_attention_i8.h"}
SELECT_INCLUDES = {*KERNEL_INCLUDES, "select.h", "status.h"}
# Parts that know neither kernels nor networks.
FOUNDATIONS = ["arena", "cpu", "crc32c", "file", "file_rules", "os", "status", "text", "tokenizer"]
FOUNDATION_INCLUDES = {f"{name}.h" for name in [*FOUNDATIONS, "bitm", "unicode_tables"]}

OS_MACRO = re.compile(
    r"^\s*#\s*(?:el)?if.*\b(_WIN32|_MSC_VER|__linux__|__unix__|__APPLE__|__ANDROID__|__\w+BSD__)\b"
)
OS_FILES = {"native/src/os.c", "native/include/bitm.h"}  # in bitm.h: how Windows exports a function
BANNED_CALL = re.compile(
    r"\b(abort|exit|_Exit|printf|fprintf|puts|sprintf|vsprintf|strcpy|strcat|gets|getenv|assert"
    r"|malloc|calloc|realloc|free|alloca)\s*\("
)
# `static` without `const` before anything that makes it a function.
MUTABLE_GLOBAL = re.compile(r"^static (?!.*\bconst\b)[^(]*[=;\[]")

MAX_FILE_LINES = {".c": 700, ".h": 700, ".py": 1000}  # the aim is 600; tests have tables of cases
MAX_FUNCTION_LINES = 80
MAX_FILE_BYTES = 256 * 1024
MAX_DEMO_BYTES = 12_000_000
FUZZ_CORPUS = ROOT / "tests/fuzz/corpus"  # broken on purpose
GENERATED = {"native/src/unicode_tables.h", "runtime/bitm/_cdef.py"}

INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def project_files() -> list[Path]:
    """What is committed or would be."""
    if not (ROOT / ".git").exists():
        pytest.skip("expected: only a git checkout knows which files are the project's")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def c_files(folder: Path = ROOT / "native") -> list[Path]:
    return sorted(path for path in folder.rglob("*.[ch]"))


def all_c_files() -> list[Path]:
    return c_files() + c_files(ROOT / "tests/native") + c_files(ROOT / "examples")


def python_files() -> list[Path]:
    folders = ["runtime", "formats", "converter", "tests", "native/tools", "bench"]
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


# ---- Python ----


def imports(path: Path) -> Iterator[str]:
    """The top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_what_they_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        allowed = MAY_IMPORT[package] | MAY_IMPORT_TOO.get(name_of(path), set())
        allowed |= {Path(package).name, *sys.stdlib_module_names}
        assert set(imports(path)) <= allowed, name_of(path)


def test_only_native_touches_cffi() -> None:
    for path in (ROOT / "runtime/bitm").glob("*.py"):
        if path.name in ("_native.py", "_cdef.py"):
            continue
        text = path.read_text()
        assert not re.search(r"\bcffi\b|\b_cdef\b|\bffi\b", text), name_of(path)


# ---- C ----


def includes(path: Path) -> set[str]:
    """The names, without folders, of the project's files that a file includes."""
    found = re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE)
    return {Path(name).name for name in found}


def code_of(path: Path) -> str:
    """The text with comments and strings blanked, line for line."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    pattern = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|' + r"'(?:\\.|[^'\\\n])*'"
    return re.sub(pattern, blank, path.read_text(), flags=re.DOTALL)


def test_kernels_include_little() -> None:
    for path in c_files(KERNELS):
        tier = "_".join(path.stem.split("_")[:2])
        own = {f"{CONTAINED_TIER.get(tier, tier)}.h"}
        if tier.startswith("arm_"):
            own = ARM_INCLUDES
        allowed = SELECT_INCLUDES if path.stem == "select" else KERNEL_INCLUDES | own
        if tier == "arm_vfpv4":
            allowed = {"scalar.c"}  # compiled once more
        assert includes(path) <= allowed, name_of(path)


def test_foundations_know_no_network() -> None:
    for name in FOUNDATIONS:
        for path in SRC.glob(f"{name}.[ch]"):
            assert includes(path) <= FOUNDATION_INCLUDES, name_of(path)


def test_headers_include_without_cycles() -> None:
    graph = {path.name: includes(path) for path in c_files() if path.suffix == ".h"}
    while graph:
        free = [name for name, wanted in graph.items() if not wanted & graph.keys()]
        assert free, f"these include each other: {sorted(graph)}"
        for name in free:
            del graph[name]


def test_only_os_asks_for_the_system() -> None:
    for path in c_files():
        if name_of(path) in OS_FILES or "tools" in path.parts:
            continue
        for line in path.read_text().splitlines():
            assert not OS_MACRO.match(line), f"{name_of(path)}: {line}"


def test_library_makes_no_banned_call() -> None:
    for path in c_files(SRC):
        if name_of(path) == "native/src/os.c":
            continue
        for number, line in enumerate(code_of(path).splitlines(), 1):
            assert not BANNED_CALL.search(line), f"{name_of(path)}:{number}: {line.strip()}"


def test_library_has_no_mutable_globals() -> None:
    for path in c_files(SRC):
        for number, line in enumerate(code_of(path).splitlines(), 1):
            assert not MUTABLE_GLOBAL.match(line), f"{name_of(path)}:{number}: {line.strip()}"


def test_c_file_names_are_unique() -> None:
    counts = Counter(path.name for path in all_c_files())
    assert [name for name, n in counts.items() if n > 1] == []


# ---- Sizes ----


def test_files_are_short() -> None:
    for path in [*all_c_files(), *python_files()]:
        if name_of(path) in GENERATED:
            continue
        n_lines = len(path.read_text().splitlines())
        assert n_lines <= MAX_FILE_LINES[path.suffix], f"{name_of(path)} has {n_lines} lines"


def c_functions(path: Path) -> Iterator[tuple[int, int]]:
    """First and last line of each function body; braces of functions stand at the line's start."""
    first = 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line == "{":
            first = number
        elif line == "}" and first:
            yield first, number
            first = 0


def test_functions_are_short() -> None:
    for path in all_c_files():
        if KERNELS in path.parents:
            continue
        for first, last in c_functions(path):
            assert last - first + 1 <= MAX_FUNCTION_LINES, f"{name_of(path)}:{first}"
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            assert node.end_lineno is not None
            n_lines = node.end_lineno - node.lineno + 1
            assert n_lines <= MAX_FUNCTION_LINES, f"{name_of(path)}:{node.lineno} {node.name}"


def test_no_large_files() -> None:
    for path in project_files():
        most = MAX_DEMO_BYTES if path.name == "demo.bitm" else MAX_FILE_BYTES
        assert path.stat().st_size <= most, name_of(path)


# ---- Characters ----


def test_c_is_ascii() -> None:
    others = [*ROOT.glob("native/**/*.cmake"), *ROOT.glob("native/**/*.def")]
    for path in [*all_c_files(), *others, ROOT / "native/CMakeLists.txt", ROOT / "Makefile"]:
        assert path.read_bytes().isascii(), name_of(path)


def test_text_is_clean() -> None:
    for path in project_files():
        data = path.read_bytes()
        if b"\0" in data or not data or FUZZ_CORPUS in path.parents:
            continue
        text = data.decode()
        lines = text.split("\n")
        has_tabs = path.name == "Makefile" or path.suffix == ".tsv"
        assert lines[-1] == "", f"{name_of(path)}: the last line does not end"
        assert "\r" not in text, f"{name_of(path)}: a carriage return"
        for number, line in enumerate(lines, 1):
            place = f"{name_of(path)}:{number}"
            assert line == line.rstrip(), f"{place}: space at the end"
            assert "\t" not in line or has_tabs, f"{place}: a tab"
            assert not INVISIBLE.search(line), f"{place}: an invisible character"
