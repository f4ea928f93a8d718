"""Long runs: one model under many calls, threads and processes, against its own serial answers.

    python tests/endurance.py model.bitm --calls 1000000 --seconds 60

The tests run the same for a moment (test_endurance.py); `make soak` runs it in full.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitm import Model

Answers = list[Any]


@dataclass
class Soak:
    """What many calls took: milliseconds a call, and what grew in between."""

    calls: int
    first_ms: npt.NDArray[np.float64]  # the first quarter of the calls, as the following
    last_ms: npt.NDArray[np.float64]
    p50_ms: float
    p99_ms: float
    p999_ms: float
    grown_bytes: npt.NDArray[np.int64]  # resident memory, in each tenth of the calls but the first
    grown_descriptors: int  # in all those

    @property
    def leaked_bytes(self) -> float:
        """What a usual tenth of the calls leaves behind.

        A leak grows in every tenth.  The interpreter takes a megabyte for its objects now and then:
        that is in one or two of them.
        """
        return float(np.median(self.grown_bytes))


def sentences(model: Model, n: int, seed: int) -> list[str]:
    """Texts of up to 60 pieces, or what the model takes, with a mask in each."""
    rng = np.random.default_rng(seed)
    longest = min(60, model.info["max_positions"]) - 3
    texts = []
    for length in rng.integers(0, longest + 1, n):
        words = [chr(ord("a") + letter) for letter in rng.integers(0, 26, length)]
        words.insert(int(rng.integers(0, length + 1)), "[MASK]")
        texts.append(" ".join(words))
    return texts


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def n_descriptors() -> int:
    """Open descriptors of this process (Linux)."""
    return len(list(Path("/proc/self/fd").iterdir()))


def soak(model: Model, calls: int, seed: int = 1) -> Soak:
    """Calls fill_mask on texts of mixed lengths."""
    texts = sentences(model, 500, seed)
    took = np.empty(calls)
    tenths = [tenth * calls // 10 for tenth in range(1, 10)]
    resident = []
    descriptors_before = 0
    for i in range(calls):
        if i in tenths:
            resident.append(resident_bytes())
        if i == tenths[0]:
            descriptors_before = n_descriptors()
        begin = time.perf_counter()
        model.fill_mask(texts[i % len(texts)])
        took[i] = time.perf_counter() - begin
        if i % 1000 == 0 and sys.stderr.isatty():
            print(f"\r{i} of {calls} calls", end="", file=sys.stderr)
    took *= 1000
    p50, p99, p999 = np.percentile(took, [50, 99, 99.9])
    quarter = max(1, calls // 4)
    return Soak(
        calls,
        took[:quarter],
        took[-quarter:],
        float(p50),
        float(p99),
        float(p999),
        np.diff([*resident, resident_bytes()]),
        n_descriptors() - descriptors_before,
    )


def _repeat(model: Model, texts: list[str], expected: Answers, until: float, first: int) -> int:
    """Fills texts in turn until a time; returns how many answers differed from the expected."""
    wrong, i = 0, first
    while time.monotonic() < until:
        wrong += model.fill_mask(texts[i % len(texts)]) != expected[i % len(texts)]
        i += 1
    return wrong


def in_threads(model: Model, n_threads: int, seconds: float, seed: int = 2) -> int:
    """Shares the model between threads; returns how many answers differed from the serial ones."""
    texts = sentences(model, 50, seed)
    expected = [model.fill_mask(text) for text in texts]
    until = time.monotonic() + seconds
    wrong = [-1] * n_threads

    def work(number: int) -> None:
        wrong[number] = _repeat(model, texts, expected, until, number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert -1 not in wrong, "a thread has died"
    return sum(wrong)


def in_forks(model: Model, n_processes: int, seconds: float, seed: int = 3) -> int:
    """Forks with the model open and used; returns how many processes had a wrong answer or died."""
    texts = sentences(model, 50, seed)
    expected = [model.fill_mask(text) for text in texts]
    until = time.monotonic() + seconds
    children = []
    for number in range(n_processes):
        child = os.fork()
        if child == 0:
            status = 2
            try:
                status = min(1, _repeat(model, texts, expected, until, number))
            finally:
                os._exit(status)
        children.append(child)
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    return failed + (_repeat(model, texts, expected, time.monotonic() + 0.1, 0) > 0)


def main() -> int:
    """Runs all three in full."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with Model(arguments.model, threads=1) as model:
        done = soak(model, arguments.calls)
        print(
            f"{done.calls} calls: p50 {done.p50_ms:.3f} ms, p99 {done.p99_ms:.3f} ms, "
            f"p99.9 {done.p999_ms:.3f} ms; median of the first quarter "
            f"{np.median(done.first_ms):.3f} ms, of the last {np.median(done.last_ms):.3f} ms; "
            f"grown by {done.grown_bytes.sum()} bytes, {done.leaked_bytes:.0f} in a usual tenth, "
            f"and {done.grown_descriptors} descriptors"
        )
        wrong = in_threads(model, 16, arguments.seconds)
        print(f"16 threads, {arguments.seconds:.0f} s: {wrong} answers differ from the serial ones")
        failed = in_forks(model, 4, arguments.seconds)
        print(f"4 processes, {arguments.seconds:.0f} s: {failed} failed")
    grown = done.leaked_bytes > 16 << 10 or done.grown_descriptors > 0
    return 1 if grown or wrong or failed else 0


if __name__ == "__main__":
    sys.exit(main())
