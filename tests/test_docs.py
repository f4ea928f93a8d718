"""What README shows is run as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, run_command, script

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text())
# Installing and testing cannot be run from inside of the tests; .ci/run does both.
NOT_HERE = ("pip install", "make test")


@pytest.fixture(scope="module")
def checkout(shared: Path, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkout after README's first command."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "shared").symlink_to(shared)
    (folder / "bitm").mkdir()
    (folder / "bitm/native").symlink_to(ROOT / "native")
    shutil.copy(small_model, folder / "bitm/small.bitm")
    return folder / "bitm"


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


def test_every_kind_of_block_is_run() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "python", "c"}


@pytest.mark.parametrize("line", [line for b in blocks("sh") for line in b.splitlines() if line])
def test_shell_line(line: str, checkout: Path) -> None:
    # A line may install first and then run: what follows the installation is run here.
    parts = [part for part in line.split(" && ") if not part.startswith(NOT_HERE)]
    if not parts:
        assert line.startswith(NOT_HERE)
        return
    folders = [str(Path(script("bitm")).parent), str(Path(sys.executable).parent)]
    path = os.pathsep.join([*folders, os.environ["PATH"]])
    done = run_command(
        "bash", "-ec", " && ".join(parts), cwd=checkout, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if "Atlantic" in line:
        assert done.stdout.splitlines()[-5].split()[1] == "ocean"
    if "France" in line:
        assert done.stdout.splitlines()[-5].split()[1] == "paris"


@pytest.mark.parametrize("code", blocks("python"))
def test_python_block(code: str, checkout: Path) -> None:
    done = run_command(sys.executable, "-c", code, cwd=checkout)
    assert done.returncode == 0, done.stderr
    expected = "the river flows into the atlantic ocean."
    assert ("Estimate(value=0." if "bitm.evaluation" in code else expected) in done.stdout


@pytest.mark.parametrize("code", blocks("c"))
def test_c_block(code: str, checkout: Path, bitm_tool: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    source, program = tmp_path / "readme.c", tmp_path / "readme"
    source.write_text(code)
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'native/include'}"]
    library = bitm_tool.parent / "libbitm.a"
    subprocess.run(
        [compiler, *flags, source, "-o", program, library, "-lm", "-lpthread"], check=True
    )
    done = run_command(program, cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"token 4841, score 0\.8\d\d\n", done.stdout)
