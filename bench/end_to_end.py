"""Text to words: how long fill_mask takes, tokenizing included, and the original's workload.

python bench/end_to_end.py base.bitm --tool build/cc-release/bitm

One sentence at a time, as by a user who waits for it; many of different lengths in one call; the
same by the C tool, less what it takes for one of them, so without its start.  Then 128 sequences of
64 tokens, for which the original project's Titan RTX took 1.447 ms a sequence in float32.  All take
turns; processor time says what other programs do not disturb.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tables
from bitm import Model
from machine import provenance, write_results

# Words of make_model.py's vocabulary, a token each.
WORDS = [f"w{i}" for i in range(1, 20)]
SENTENCE = f"{' '.join(WORDS[:6])} [MASK]"
BATCH, LENGTH = 128, 64
ORIGINAL_MS = 1.447


def sentences(n: int) -> list[str]:
    """Texts of 4 to 19 words, one of them a mask."""
    return [f"{' '.join(WORDS[: 3 + i % 16])} [MASK]" for i in range(n)]


def processor_seconds() -> float:
    """Of this process and those that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor seconds of a call."""
    start, start_processor = time.perf_counter(), processor_seconds()
    call()
    return time.perf_counter() - start, processor_seconds() - start_processor


def run_tool(command: list[str], texts: list[str]) -> tuple[float, float]:
    """The C tool with the texts and one more, less the C tool with one."""

    def run(some: list[str]) -> None:
        subprocess.run(command, input="\n".join(some), text=True, check=True, capture_output=True)

    one, all_and_one = timed(lambda: run(texts[:1])), timed(lambda: run([*texts, texts[0]]))
    return all_and_one[0] - one[0], all_and_one[1] - one[1]


def token_counts(arguments: argparse.Namespace) -> dict[str, float]:
    """Tokens of a sentence: in another model's vocabulary they are other ones."""
    with Model(arguments.model) as model:
        counts = [len(model.tokenize(text)) for text in sentences(arguments.sentences)]
        return {
            "one": len(model.tokenize(SENTENCE)),
            "least": min(counts),
            "most": max(counts),
            "mean": round(statistics.mean(counts), 1),
        }


def workloads(
    arguments: argparse.Namespace, n_threads: int
) -> dict[str, tuple[int, Callable[[], tuple[float, float]]]]:
    """By name: the number of texts or sequences, and what times them."""
    model = Model(arguments.model, threads=n_threads, activations=arguments.activations)
    texts = sentences(arguments.sentences)
    ids = np.random.default_rng(1).integers(1000, 20000, (BATCH, LENGTH)).astype(np.int32)
    command = [str(arguments.tool), "fill-mask", str(arguments.model)]
    command += ["--threads", str(n_threads), "--activations", arguments.activations]
    n_calls = 10
    return {
        "Python, a sentence a call": (
            n_calls,
            lambda: timed(lambda: [model.fill_mask(SENTENCE) for _ in range(n_calls)]),
        ),
        "Python, all sentences in a call": (
            len(texts),
            lambda: timed(lambda: model.fill_mask(texts)),
        ),
        "C tool, all sentences": (len(texts), lambda: run_tool(command, texts)),
        f"Python, {BATCH} x {LENGTH} tokens, hidden states": (
            BATCH,
            lambda: timed(lambda: model.hidden_states(ids)),
        ),
    }


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry for each workload and number of threads; each runs once in a round."""
    found = []
    for n_threads in map(int, arguments.threads.split(",")):
        loads = workloads(arguments, n_threads)
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in loads}
        for _ in range(arguments.rounds):
            for name, (n, run) in loads.items():
                seconds, processor = run()
                runs[name].append((seconds / n * 1e3, processor / n * 1e3))
        found += [
            {
                "what": name,
                "threads": n_threads,
                "median_ms": round(statistics.median(r[0] for r in results), 3),
                "least_ms": round(min(r[0] for r in results), 3),
                "processor_ms": round(statistics.median(r[1] for r in results), 3),
            }
            for name, results in runs.items()
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tool", type=Path, required=True, help="the C tool: make build")
    parser.add_argument("--activations", default="int8")
    parser.add_argument("--threads", default="1,2", help="with commas (default: %(default)s)")
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    document = {
        **provenance("python bench/end_to_end.py"),
        "activations": arguments.activations,
        "sentences": arguments.sentences,
        "tokens": token_counts(arguments),
        "original_ms": ORIGINAL_MS,
        "runs": measure(arguments),
    }
    if arguments.output is not None:
        write_results(arguments.output, document)
    print(tables.end_to_end(document))


if __name__ == "__main__":
    main()
