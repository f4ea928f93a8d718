"""The device code compiles for every GPU that it is meant for, also where none is at hand.

NVRTC 12, the compiler as a library, makes machine code for the GPUs of CUDA 12 and before; nvcc 13
compiles the whole library, host code as well, for those of CUDA 13.  Both come as wheels.
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
# Jetson Nano, TX2, Xavier, Orin; Turing, Ampere, Ada.  Hopper is the next test's.
OLDER = ["sm_53", "sm_62", "sm_72", "sm_87", "sm_75", "sm_80", "sm_86", "sm_89"]
NEWEST = ["75", "90a", "100", "120"]
ABSENT = "expected: `make cuda-sources` installs what compiles them"
FLAGS = ["--std=c++14", "--fmad=false", f"--include-path={CUDA}"]


def from_wheels(name: str) -> str | None:
    """The path of a file of NVIDIA's wheels."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    found = [path for folder in folders for path in Path(folder).rglob(name)]
    return str(found[0]) if found else None


def nvrtc() -> ctypes.CDLL:
    """NVRTC from its wheel, or the system's."""
    try:
        return ctypes.CDLL(from_wheels("libnvrtc.so.12") or "libnvrtc.so.12")
    except OSError:
        pytest.skip(f"{ABSENT}, NVRTC 12")


def tool(name: str) -> str:
    """A program of CUDA 13, from its wheel or the system's."""
    path = from_wheels(f"bin/{name}") or shutil.which(name)
    if path is None:
        pytest.skip(f"{ABSENT}, {name}")
    return path


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
    of_the_host = ("session.cuh", "forward.cuh")
    headers = sorted(path.name for path in CUDA.glob("*.cuh") if path.name not in of_the_host)
    kinds = range(3)
    # Canonical, of 64 and of 16 queries a block, and on tensor cores.
    attentions = ("0, 1, 64", "0, 1, 16", "1, 1, 64", "1, 2, 64")
    instances = [
        *[f"gemm_kernel<{b}, {kind}>" for b in ("true", "false") for kind in kinds],
        # Those of bits have two epilogues more, which write bits.
        *[f"gemm_wgmma_kernel<{n}, {kind}>" for n in (2, 4, 6) for kind in range(5)],
        *[f"gemm_bits_kernel<{n}>" for n in (2, 4, 6, 8)],
        *[f"gemm_wgmma_bytes_kernel<{kind}>" for kind in kinds],
        *[f"add_norm_registers_kernel<{n}>" for n in (32, 48, 64)],
        *[f"embed_registers_kernel<{n}>" for n in (32, 48, 64)],
        *[f"encode_rows_kernel<{n}>" for n in (4, 6, 8, 16, 24)],
        *[f"attention_kernel<{n}>" for n in (0, 4)],
        *[f"attention_signs_kernel<{n}>" for n in (3, 4)],
        *[f"attend_kernel<{b}, {t}>" for b in ("true", "false") for t in attentions],
        *[f"attend_kernel<true, 2, {n}, 64>" for n in (1, 2)],  # of codes
        *[f"gemm_norm_kernel<32, 32, 2, {b}>" for b in ("true", "false")],
        *[f"gemm_norm_kernel<{n}, 32, 4, {b}>" for n in (48, 64) for b in ("true", "false")],
        *[f"gemm_norm_kernel<48, 64, {n}>" for n in ("4, false", "3, true")],
        *[f"gemm_norm_cluster_kernel<{n}, true>" for n in (512, 768, 1024)],
        *[f"gemm_norm_cluster_kernel<{n}, false>" for n in (512, 768, 1024)],
        *[f"layer_signs_kernel<{n}, 32, false>" for n in (2, 3, 4)],
        *[f"layer_signs_kernel<{n}, 64, {b}>" for n in (2, 3) for b in ("true", "false")],
        *[f"layer_cluster_kernel<{n}>" for n in (2, 3, 4)],
        *[f"attend_signs_kernel<{n}>" for n in (2, 3, 4)],
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


@pytest.mark.parametrize("architecture", OLDER)
def test_the_device_code_compiles(architecture: str) -> None:
    source, kernels = all_kernels()
    code, log = compile_with(nvrtc(), source, architecture, kernels)
    assert code, log
    assert code[:4] == b"\x7fELF"


def test_hopper_multiplies_bits_on_its_tensor_cores(tmp_path: Path) -> None:
    """Its machine code has what no other GPU has: products by a warpgroup."""
    source, kernels = all_kernels()
    code, log = compile_with(nvrtc(), source, "sm_90a", kernels)
    assert code, log
    cubin = tmp_path / "sm_90a.cubin"
    cubin.write_bytes(code)
    done = subprocess.run([tool("nvdisasm"), str(cubin)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    instructions = set(re.findall(r"\b[BHI]GMMA\.[.\w]+", done.stdout))
    assert {"BGMMA.64x128x256.AND.POPC", "BGMMA.64x64x256.AND.POPC"} <= instructions
    assert {"IGMMA.64x64x32.S8.S8"} <= instructions
    assert {"IGMMA.64x128x32.U8.S8", "IGMMA.64x128x32.U8.U8"} <= instructions
    assert "HGMMA.64x64x16.F32" in instructions


def test_a_mistake_is_found() -> None:
    code, log = compile_with(nvrtc(), "__global__ void k() { undeclared(); }", "sm_53", [])
    assert not code
    assert "undeclared" in log


@pytest.mark.parametrize("architecture", NEWEST)
def test_nvcc_compiles_the_library(tmp_path: Path, architecture: str) -> None:
    nvcc = tool("nvcc")
    # The host code is the same for all, so one architecture has it.
    without_kernels = ["library", "session"] if architecture != "90a" else []
    names = [path.stem for path in CUDA.glob("*.cu") if path.stem not in without_kernels]
    for name in names:
        command = [nvcc, "--std=c++14", "-fmad=false", "-diag-suppress=128", "-c"]
        command += [f"-I{CUDA.parents[1] / 'include'}", str(CUDA / f"{name}.cu")]
        command += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
        command += ["-Werror", "all-warnings", "-o", str(tmp_path / f"{name}.o")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr
