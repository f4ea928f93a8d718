"""The device code compiles for every GPU that it is meant for, also where none is at hand.

NVRTC, the compiler as a library, makes machine code for the boards of CUDA 12 and before; nvcc,
where it is installed, for all that it knows.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CUDA = Path(__file__).resolve().parents[1] / "native/src/cuda"
# Jetson Nano, TX2, Xavier, Orin.
ARCHITECTURES = ["sm_53", "sm_62", "sm_72", "sm_87"]
FLAGS = ["--std=c++14", "--fmad=false", f"--include-path={CUDA}"]


def nvrtc() -> ctypes.CDLL:
    """NVRTC from its wheel, or the system's."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    found = [path for folder in folders for path in Path(folder).rglob("libnvrtc.so.12")]
    try:
        return ctypes.CDLL(str(found[0]) if found else "libnvrtc.so.12")
    except OSError:
        pytest.skip("NVRTC 12 is not installed: pip install nvidia-cuda-nvrtc-cu12==12.6.85")


def compile_with(
    library: ctypes.CDLL, source: str, architecture: str, kernels: list[str]
) -> tuple[bytes, str]:
    """Machine code of kernels (empty where the source is wrong) and the compiler's log."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    arguments = (ctypes.byref(program), source.encode(), b"all.cu", 0, None, None)
    assert library.nvrtcCreateProgram(*arguments) == 0
    for kernel in kernels:
        assert library.nvrtcAddNameExpression(program, kernel.encode()) == 0
    options = [f"--gpu-architecture={architecture}", *FLAGS]
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = library.nvrtcCompileProgram(program, len(options), array)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    if status != 0:
        return b"", log.value.decode()
    library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    library.nvrtcGetCUBIN(program, code)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return code.raw, log.value.decode()


def all_kernels() -> tuple[str, list[str]]:
    """A source with every header of device code, and the names of all kernels.

    What is not named is not compiled.
    """
    headers = sorted(path.name for path in CUDA.glob("*.cuh") if path.name != "session.cuh")
    kinds = range(3)
    instances = [
        *[f"gemm_kernel<{b}, {kind}>" for b in ("true", "false") for kind in kinds],
        *[f"gemm_wgmma_kernel<{n}, {kind}>" for n in (2, 4, 6) for kind in kinds],
        *[f"gemm_wgmma_bytes_kernel<{kind}>" for kind in kinds],
        *[f"add_norm_registers_kernel<{n}>" for n in (32, 48, 64)],
        *[f"attention_kernel<{n}>" for n in (0, 4)],
    ]
    text = "".join((CUDA / header).read_text() for header in headers)
    plain = re.findall(
        r"(?<!>\n)static __global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(", text
    )
    templates = {name.partition("<")[0] for name in instances}
    names = instances + [name for name in plain if name not in templates]
    assert len(names) > 30
    includes = "".join(f'#include "{header}"\n' for header in headers)
    return includes, [f"bitm::{name}" for name in names]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_device_code_compiles(architecture: str) -> None:
    source, kernels = all_kernels()
    code, log = compile_with(nvrtc(), source, architecture, kernels)
    assert code, log
    assert code[:4] == b"\x7fELF"


def test_a_mistake_is_found() -> None:
    code, log = compile_with(nvrtc(), "__global__ void k() { undeclared(); }", "sm_53", [])
    assert not code
    assert "undeclared" in log


def test_nvcc_compiles_the_library(tmp_path: Path) -> None:
    """Host code as well, for the newest architectures."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("expected: nvcc is not installed")
    for name in ("library", "model", "session"):
        command = [nvcc, "--std=c++14", "-fmad=false", f"-I{CUDA.parents[1] / 'include'}", "-c"]
        command += ["-gencode", "arch=compute_90a,code=sm_90a", str(CUDA / f"{name}.cu")]
        command += ["-Werror", "all-warnings", "-o", str(tmp_path / f"{name}.o")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
