"""Times BERT-base in bitm and in other engines, side by side.

python bench/compare.py --models build/bench --output bench/results/compare.json

Every engine runs in a process of its own, pinned to the same CPUs, with the same number of threads;
only one computes at a time, the others are stopped.  They take turns in rounds, so that a machine
that slows down slows all of them: ratios are medians of the ratios of rounds.  `--clock cpu` tables
CPU time instead, for one thread on a machine that does other work.
An engine that is not installed, or that has no model file, is left out.

--models holds base-float.bitm and base-sign.bitm (bench/make_model.py) and peers/
(bench/peer_models.py); `make bench-models` makes them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tables
from engines import TEXT_LENGTH, Cell
from machine import provenance, write_results

ENGINES = (
    "bitm int8,bitm auto,bitm w1a1,openvino int8,openvino fp32,"
    "onnxruntime int8,onnxruntime fp32,pytorch int8,pytorch fp32"
)
CELLS = "1x16,1x64,1x128,1x512,8x128,32x64,128x64"
HEAD_CELLS = "1x16,1x64,1x128"
MIN_ROUNDS = 3
# What `--isa avx2` sets.  bitm's kernels are forced; onnxruntime cannot be told, and OpenVINO obeys
# in its products, not in its other kernels.
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
}


class WorkerError(Exception):
    """An engine cannot run here; the message says why."""


class Worker:
    """An engine's process, which computes only inside of `ask`."""

    def __init__(self, engine: str, models: Path, cpus: list[int], isa: str | None) -> None:
        self.engine = engine
        variant = f"{engine} avx2" if isa and engine.startswith("bitm") else engine
        command = [sys.executable, str(Path(__file__).with_name("engines.py")), variant]
        command += ["--models", str(models), "--threads", str(len(cpus))]
        command += ["--cpus", ",".join(map(str, cpus))]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - close() closes it
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, "OMP_NUM_THREADS": str(len(cpus)), **(AVX2 if isa else {})},
            text=True,
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Lets the engine compute until it has answered.

        Raises:
            WorkerError: it ended instead.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.log.seek(0)
            lines = [line for line in self.log.read().splitlines() if line.strip()]
            raise WorkerError(lines[-1] if lines else f"exit status {self.process.wait()}")
        self.process.send_signal(signal.SIGSTOP)
        return dict(json.loads(answer))

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
        self.log.close()


def cores() -> list[int]:
    """The CPUs that this process may use, one of each core."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    chosen, taken = [], set()
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        core = siblings.read_text() if siblings.exists() else str(cpu)
        if core not in taken:
            chosen.append(cpu)
            taken.add(core)
    return chosen


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """What is to be run, from the command line's "1x16,8x128"."""
    cells = [Cell("fill_mask", 1, TEXT_LENGTH)]
    for task, listed in (("encoder", arguments.cells), ("head", arguments.head_cells)):
        for shape in filter(None, listed.split(",")):
            batch, length = shape.split("x")
            cells.append(Cell(task, int(batch), int(length)))
    return cells


def load(
    workers: list[Worker], cell: Cell, slowest: float, versions: dict[str, str]
) -> list[Worker]:
    """The workers that run the cell, in less than `slowest` seconds; notes their versions."""
    ready = []
    for worker in list(workers):
        try:
            answer = worker.ask(cell._asdict())
        except WorkerError as error:
            print(f"{worker.engine} left out: {error}", file=sys.stderr)
            worker.close()
            workers.remove(worker)
            continue
        versions[worker.engine.partition(" ")[0]] = answer["version"]
        if answer["run_seconds"] <= slowest:
            ready.append(worker)
        else:
            print(f"{worker.engine} left out of {cell}: too slow", file=sys.stderr)
    return ready


def run_rounds(
    workers: list[Worker], arguments: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """What each worker answered in each round; every other round goes backwards."""
    answers: dict[str, list[dict[str, Any]]] = {worker.engine: [] for worker in workers}
    start = time.monotonic()
    for n in range(arguments.rounds):
        if n >= MIN_ROUNDS and time.monotonic() - start > arguments.cell_seconds:
            break
        for worker in workers[:: -1 if n % 2 else 1]:
            try:
                answer = worker.ask({"seconds": arguments.turn_seconds})
            except WorkerError as error:
                raise SystemExit(f"{worker.engine} failed: {error}") from error
            answers[worker.engine].append(answer)
    return answers


def row(cell: Cell, engine: str, n_threads: int, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """One engine's results in one cell: lists of what it took in each round, and its threads."""
    return {
        "engine": engine,
        **cell._asdict(),
        "threads": n_threads,
        "ms": [round(answer["ms"], 4) for answer in answers],
        "cpu_ms": [round(answer["cpu_ms"], 4) for answer in answers],
        "cpus": round(statistics.median(answer["cpus"] for answer in answers), 2),
        "busy_threads": max(answer["busy_threads"] for answer in answers),
    }


def compare(arguments: argparse.Namespace, document: dict[str, Any]) -> None:
    """Adds to the document what every engine took in every cell, writing it after each."""
    cpus = [int(cpu) for cpu in arguments.cpus.split(",")] if arguments.cpus else cores()
    for n_threads in map(int, arguments.threads.split(",")):
        if n_threads > len(cpus):
            raise SystemExit(f"{n_threads} threads, but there are {len(cpus)} cores")
        workers = [
            Worker(engine, arguments.models, cpus[:n_threads], arguments.isa)
            for engine in arguments.engines.split(",")
        ]
        try:
            for cell in cells_of(arguments):
                ready = load(workers, cell, arguments.slowest, document["versions"])
                for engine, answers in run_rounds(ready, arguments).items():
                    document["results"].append(row(cell, engine, n_threads, answers))
                    print_row(document["results"][-1])
                if arguments.output is not None:
                    write_results(arguments.output, document)
        finally:
            for worker in workers:
                worker.close()


def print_row(result: dict[str, Any]) -> None:
    print(
        f"{result['threads']} threads  {result['task']:9} {result['batch']:3}x{result['length']:<3}"
        f"  {result['engine']:16}  {statistics.median(result['ms']):10.3f} ms"
        f"  ({len(result['ms'])} rounds, {result['cpus']:.2f} CPUs)",
        file=sys.stderr,
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("build/bench"))
    parser.add_argument("--engines", default=ENGINES, help="with commas (default: %(default)s)")
    parser.add_argument("--cells", default=CELLS, help="BATCHxLENGTH,... (default: %(default)s)")
    parser.add_argument(
        "--head-cells", default=HEAD_CELLS, help="those with the masked-LM head too"
    )
    parser.add_argument("--threads", default="1,2", help="with commas (default: %(default)s)")
    parser.add_argument("--cpus", help="to pin to, with commas (default: one of each core)")
    parser.add_argument("--isa", choices=["avx2"], help="keep engines to AVX2 that can be told to")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--turn-seconds", type=float, default=0.3, help="of an engine in a round")
    parser.add_argument(
        "--cell-seconds", type=float, default=120, help="after which rounds end, but for three"
    )
    parser.add_argument(
        "--slowest", type=float, default=20, help="leave out what takes more seconds a run"
    )
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    document: dict[str, Any] = {
        **provenance("python bench/compare.py"),
        "isa": arguments.isa or "all",
        "clock": arguments.clock,
        "versions": {},
        "results": [],
    }
    compare(arguments, document)
    print(tables.comparison(document))


if __name__ == "__main__":
    main()
