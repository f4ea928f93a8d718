"""Fixtures shared by the tests: models to run, tools to call, and what may be skipped."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest

import bitm_formats
from tiny_models import masked_lm, with_vocabulary

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
EXPECT_ALL = os.environ.get("BITM_EXPECT_ALL") == "1"
# The GELU that answers are held against is oneDNN's, by way of PyTorch: its code for AVX-512 falls
# to zero at other inputs than that for AVX2, and a zero may have a code of its own.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With BITM_EXPECT_ALL=1 a skip is a failure, unless its reason begins with "expected:"."""
    report = yield
    if EXPECT_ALL and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith("expected:"):
            report.outcome = "failed"
            report.longrepr = f"skipped, though BITM_EXPECT_ALL=1: {reason}"
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real checkpoints and texts, beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: it holds the real checkpoint and texts")
    return SHARED


@pytest.fixture(scope="session")
def small_checkpoint(shared: Path) -> Path:
    """A real 1-bit masked LM in Hugging Face layout."""
    return shared / "checkpoints/w1-small-en"


def run_command(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a command of this environment; output as text."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [str(part) for part in command], capture_output=True, text=True, timeout=600, **options
    )


def script(name: str) -> str:
    """The path of a console script of this environment."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is not installed: pip install ."
    return found


@pytest.fixture(scope="session")
def small_model(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That checkpoint, converted."""
    path = tmp_path_factory.mktemp("small") / "small.bitm"
    done = run_command(script("bitm-convert"), small_checkpoint / "pytorch_model.bin", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked LM of random weights: 2 layers, hidden 48."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.bitm"
    bitm_formats.write(path, masked_lm(np.random.default_rng(0)))
    return path


@pytest.fixture(scope="session")
def tokenizer_model(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[list[str], bool, bool], Path]:
    """Makes a model file around a vocabulary."""

    def make(vocabulary: list[str], lowercase: bool, strip_accents: bool) -> Path:
        path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.bitm"
        bitm_formats.write(path, with_vocabulary(vocabulary, lowercase, strip_accents))
        return path

    return make


@pytest.fixture(scope="session")
def native_status() -> Callable[[bytes, bool], str]:
    """The status that the C reader gives a file in memory."""
    from bitm import BitmError, _native

    def status(data: bytes, verify: bool) -> str:
        try:
            _native.open_memory(data, verify)
        except BitmError as error:
            return error.name
        return "OK"

    return status


@pytest.fixture(scope="session")
def bitm_tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command line in C, built from this tree."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed: it builds the C tool")
    build = tmp_path_factory.mktemp("build")
    for command in (
        ["cmake", "-S", ROOT / "native", "-B", build, "-DCMAKE_BUILD_TYPE=Release"],
        ["cmake", "--build", build, "--target", "bitm_tool", "--parallel", "2"],
    ):
        done = run_command(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "bitm"


def needs(module: str) -> None:
    """Skips a test whose reference implementation is not installed."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: it defines what is right here")
