"""One engine in a process of its own: loads BERT-base, runs it when it is told to.

python bench/engines.py "bitm int8" --models build/bench --threads 1 --cpus 0

compare.py starts this.  A line of JSON on standard input asks, a line on standard output answers:

{"task": "encoder", "batch": 1, "length": 16}    loads; answers the seconds of a run
{"seconds": 0.3}                                 runs that long; answers ms and threads
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Run = Callable[[], object]

# 13 words and a mask; with [CLS] and [SEP] 16 tokens of make_model.py's vocabulary.
TEXT = "w1 w2 w3 w4 w5 w6 w7 [MASK] w8 w9 w10 w11 w12 w13"
TEXT_LENGTH = 16
WARM_UP_SECONDS = 0.5


class Cell(NamedTuple):
    """What is run: `encoder`, `head` (encoder and logits at one position), or `fill_mask`.

    fill_mask is bitm's whole answer to TEXT; beside it the others run their encoder alone.
    """

    task: str
    batch: int
    length: int

    def network(self) -> str:
        """What the other engines run."""
        return "head" if self.task == "head" else "encoder"

    def ids(self) -> npt.NDArray[np.int64]:
        """Token ids [B, S], no padding."""
        return np.random.default_rng(0).integers(1000, 30_000, (self.batch, self.length))

    def positions(self) -> npt.NDArray[np.int64]:
        """The position [B] whose logits are asked for."""
        return np.full(self.batch, self.length // 2)


class Place(NamedTuple):
    """Where an engine finds its files and how many threads it may use."""

    models: Path
    threads: int


# ---- Engines: each opens what it can keep and returns what loads a cell ----


def open_bitm(variant: str, place: Place) -> Callable[[Cell], Run]:
    """Variants int8, auto: the weights-only model; w1a1: sign activations.

    A variant "NAME avx2" forces kernels of that tier.
    """
    from bitm import Model
    from bitm._native import default_kernels

    mode, _, tier = variant.partition(" ")
    forced: dict[str, str] = {}
    for kernel in default_kernels() if tier else []:
        if kernel["available"] and kernel["variant"].startswith((tier, "scalar")):
            forced.setdefault(kernel["op"], kernel["variant"])
    path = place.models / f"base-{'sign' if mode == 'w1a1' else 'float'}.bitm"
    model = Model(
        path,
        threads=place.threads,
        activations="auto" if mode == "w1a1" else mode,
        kernels=",".join(f"{op}={name}" for op, name in forced.items()) or None,
    )

    def load(cell: Cell) -> Run:
        ids, positions = cell.ids(), cell.positions()[:, None]
        if cell.task == "encoder":
            return lambda: model.hidden_states(ids)
        if cell.task == "head":
            return lambda: model.logits(ids, positions=positions)
        n_tokens = len(model.tokenize(TEXT))
        if n_tokens != TEXT_LENGTH:
            raise SystemExit(f"the text has {n_tokens} tokens, expected {TEXT_LENGTH}")
        return lambda: model.fill_mask(TEXT)

    return load


def open_pytorch(variant: str, place: Place) -> Callable[[Cell], Run]:
    """Variants fp32, int8 (dynamic quantization of the linears)."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.set_num_threads(place.threads)
    model = BertForMaskedLM(BertConfig()).eval()
    if variant == "int8":
        linear = {torch.nn.Linear}
        model = torch.ao.quantization.quantize_dynamic(model, linear, dtype=torch.qint8)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def run(cell: Cell, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        states = model.bert(ids).last_hidden_state
        if cell.network() == "encoder":
            return states
        return model.cls(states[torch.arange(cell.batch), positions])

    def load(cell: Cell) -> Run:
        ids, positions = torch.from_numpy(cell.ids()), torch.from_numpy(cell.positions())
        return lambda: run(cell, ids, positions)

    return load


def open_onnxruntime(variant: str, place: Place) -> Callable[[Cell], Run]:
    """Variants fp32, int8: files of peer_models.py; sessions of the cell's shape."""
    import onnxruntime

    suffix = ".int8.onnx" if variant == "int8" else ".onnx"

    def load(cell: Cell) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = place.threads
        options.inter_op_num_threads = 1
        options.add_free_dimension_override_by_name("batch", cell.batch)
        options.add_free_dimension_override_by_name("length", cell.length)
        path = place.models / "peers" / f"{cell.network()}{suffix}"
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        inputs = {"input_ids": cell.ids(), "positions": cell.positions()}
        named = {port.name: inputs[port.name] for port in session.get_inputs()}
        return lambda: session.run(None, named)

    return load


def open_openvino(variant: str, place: Place) -> Callable[[Cell], Run]:
    """Variants fp32, int8: files of peer_models.py, compiled for the cell's shape.

    fp32 is held to float32; int8 does the rest in what OpenVINO chooses (bfloat16 with AMX).
    """
    import openvino

    core = openvino.Core()
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": place.threads,
        "ENABLE_CPU_PINNING": False,
        "ENABLE_HYPER_THREADING": True,  # the process is pinned to cores
    }
    if variant == "fp32":
        options["INFERENCE_PRECISION_HINT"] = "f32"
    suffix = ".int8.xml" if variant == "int8" else ".xml"

    def load(cell: Cell) -> Run:
        model = core.read_model(place.models / "peers" / f"{cell.network()}{suffix}")
        inputs = {"input_ids": cell.ids(), "positions": cell.positions()}
        named = {port.get_any_name(): inputs[port.get_any_name()] for port in model.inputs}
        model.reshape({name: list(array.shape) for name, array in named.items()})
        request = core.compile_model(model, "CPU", options).create_infer_request()
        for name, array in named.items():
            request.set_tensor(name, openvino.Tensor(array))
        return lambda: request.infer()

    return load


OPENERS: dict[str, tuple[str, Callable[[str, Place], Callable[[Cell], Run]]]] = {
    "bitm": ("bitm", open_bitm),
    "pytorch": ("torch", open_pytorch),
    "onnxruntime": ("onnxruntime", open_onnxruntime),
    "openvino": ("openvino", open_openvino),
}


def version(engine: str) -> str:
    """The version of an engine's package, or "" where it is not installed as one."""
    try:
        return importlib.metadata.version(OPENERS[engine.partition(" ")[0]][0])
    except importlib.metadata.PackageNotFoundError:
        return ""


# ---- Measuring ----


def thread_times() -> dict[str, int]:
    """Nanoseconds on a CPU of each thread of this process, where the system tells them."""
    times = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            times[path.parent.name] = int(path.read_text().split()[0])
        except (OSError, IndexError, ValueError):  # a thread that has ended
            continue
    return times


def measure(run: Run, seconds: float, warm_up: bool) -> dict[str, Any]:
    """Runs for about `seconds`, at least once.

    Returns the median ms of a run, on the clock and of CPU time; how many CPUs were kept busy; and
    the number of threads that computed for a tenth of the time, 0 where the system does not tell.
    """
    if warm_up:
        run()  # wakes threads and fills caches after the other engines' turns
    before = thread_times()
    clocks = [(time.perf_counter(), time.process_time())]
    while len(clocks) == 1 or clocks[-1][0] - clocks[0][0] < seconds:
        run()
        clocks.append((time.perf_counter(), time.process_time()))
    after = thread_times()
    wall, cpu = np.diff(np.array(clocks), axis=0).T
    computed = np.array([after[name] - before.get(name, 0) for name in after])
    return {
        "ms": float(np.median(wall) * 1e3),
        "cpu_ms": float(np.median(cpu) * 1e3),
        "cpus": float(cpu.sum() / wall.sum()),
        "busy_threads": int((computed > 1e8 * cpu.sum()).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", help="for instance 'openvino int8'")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cpus", required=True, help="numbers with commas")
    arguments = parser.parse_args()
    # Before libraries are loaded: their threads inherit it.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(cpu) for cpu in arguments.cpus.split(",")])
    # Libraries print to standard output too.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    name, _, variant = arguments.engine.partition(" ")
    opener = OPENERS[name][1]
    load: Callable[[Cell], Run] | None = None
    run: Run | None = None
    run_seconds = 0.0
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        if "task" in request:
            run = None
            load = load or opener(variant, Place(arguments.models, arguments.threads))
            run = load(Cell(**request))
            run()
            start = time.perf_counter()
            run()
            run_seconds = time.perf_counter() - start
            answer = {"run_seconds": run_seconds, "version": version(name)}
        else:
            assert run is not None
            answer = measure(run, request["seconds"], run_seconds < WARM_UP_SECONDS)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
