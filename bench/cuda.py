"""BERT-base on a GPU: bitm beside PyTorch, in one interleaved run.

`python bench/cuda.py --output bench/results/cuda.json` makes 1-bit models of random weights, runs
their encoders and PyTorch's (float16 and bfloat16, compiled, with CUDA graphs), and writes medians
by the wall clock beside the floors that arithmetic and memory set.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tables
from machine import provenance, write_results

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "formats")]

import bitm_formats  # noqa: E402
from bitm import Model  # noqa: E402
from bitm_formats import ModelFile  # noqa: E402
from make_model import make_model  # noqa: E402

SHAPES = [(1, 64), (32, 128), (128, 64), (512, 64), (8, 512)]
BITS_PER_S, INT8_PER_S, FLOATS_PER_S, BYTES_PER_S = 7.707e15, 0.967e15, 29.6e12, 3.0e12
HALVES_PER_S = 495e12  # the data sheet's, of an H100
TENSOR = "attention=tensor"
FLOAT_ATTENTION = "W1A1, float attention"
VOCAB, HIDDEN, LAYERS, INNER = 30522, 768, 12, 3072
SENTENCES = 4096


def make_models() -> dict[str, ModelFile]:
    """BERT-base as the CPU's benchmarks have it, and with signs in its linears alone."""
    signs = make_model("base", "sign", "mlm")
    before_linears = {k: q for k, q in signs.quantizers.items() if ".attention." not in k}
    return {
        "W1A1": signs,
        FLOAT_ATTENTION: dataclasses.replace(signs, quantizers=before_linears),
        "W1A8": make_model("base", "float", "mlm"),
    }


def floor_ms(batch: int, length: int, name: str, kernels: str | None) -> float:
    """Milliseconds that the products of the linears, with one reading of the weights, and those of
    attention take at the rates measured: floats, or three times halves on tensor cores."""
    tokens = batch * length
    linears = tokens * LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)
    attention = tokens * LAYERS * 2 * length * HIDDEN
    weights = linears / tokens / 8 / BYTES_PER_S
    rates = {"W1A1": BITS_PER_S, "W1A8": INT8_PER_S, FLOAT_ATTENTION: FLOATS_PER_S}
    of_linears = max(linears / (INT8_PER_S if name == "W1A8" else BITS_PER_S), weights)
    of_attention = attention / rates[name] if kernels is None else 3 * attention / HALVES_PER_S
    return (of_linears + of_attention) * 1e3


def torch_encoders(names: list[str]) -> dict[str, Callable[[np.ndarray[Any, Any]], Any]]:
    """PyTorch's encoder of the same sizes in each dtype of names, compiled."""
    import torch
    from transformers import BertConfig, BertModel

    encoders: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {}
    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16}
    for name in names:
        with torch.no_grad():
            model = BertModel(BertConfig(), add_pooling_layer=False).eval().cuda().to(dtypes[name])
        compiled = torch.compile(model, mode="reduce-overhead")

        def run(ids: Any, compiled: Any = compiled) -> Any:
            with torch.no_grad():
                torch.compiler.cudagraph_mark_step_begin()
                return compiled(ids).last_hidden_state

        encoders[f"torch {name}"] = run
    return encoders


def median_ms(run: Callable[[], object], wait: Callable[[], object], n: int) -> float:
    for _ in range(5):
        run()
    wait()
    times = []
    for _ in range(n):
        begin = time.perf_counter()
        run()
        wait()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


class Bench:
    """The encoder alone: one session, run through the library so that nothing else is timed."""

    def __init__(self, path: Path, name: str, kernels: str | None) -> None:
        self.name, self.kernels = name, kernels
        self.model = Model(path, device="cuda", activations="int8", kernels=kernels)

    def encode(self, ids: np.ndarray[Any, Any]) -> Callable[[], object]:
        """A run whose results stay on the device: no position is asked for.  It waits for the run
        before, so that repeated runs take what the device takes."""
        from bitm import _native

        batch, length = ids.shape
        session = _native.Session(self.model._library, batch, length, 1, self.model._activations)
        positions = np.full((len(ids), 1), -1, np.int32)
        ids = ids.astype(np.int32)
        return lambda: session.top_k(ids, None, positions, 1, None)


def measure(
    benches: dict[str, Bench], torch_runs: dict[str, Callable[[Any], Any]], n: int
) -> list[dict[str, Any]]:
    """Medians at every shape: {batch, length, what, ms}, and our floor_ms."""
    results: list[dict[str, Any]] = []
    for batch, length in SHAPES:
        ids = np.random.default_rng(1).integers(1000, VOCAB, (batch, length))
        shape = {"batch": batch, "length": length}
        for name, bench in benches.items():
            ms = median_ms(bench.encode(ids), lambda: None, n)
            floor = floor_ms(batch, length, bench.name, bench.kernels)
            results.append({**shape, "what": f"bitm {name}", "ms": ms, "floor_ms": floor})
        for name, run in torch_runs.items():
            import torch

            on_device = torch.from_numpy(ids).cuda()
            ms = median_ms(functools.partial(run, on_device), torch.cuda.synchronize, n)
            results.append({**shape, "what": name, "ms": ms})
        print(*results[-len(benches) - len(torch_runs) :], sep="\n", flush=True)
    return results


def sentences_per_s(model: Model) -> float:
    """fill_mask from text to words, one mask a sentence, all in one call."""
    words = np.random.default_rng(2).integers(0, 20000, (SENTENCES, 18))
    texts = [" ".join(f"w{i}" for i in row) + " [MASK]" for row in words]
    model.fill_mask(texts)
    begin = time.perf_counter()
    model.fill_mask(texts)
    return SENTENCES / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="a JSON file")
    parser.add_argument("--torch", default="fp16,bf16", help="dtypes of PyTorch, '' for none")
    parser.add_argument("--runs", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        benches = {}
        for name, made in make_models().items():
            path = Path(folder) / f"{name}.bitm"
            bitm_formats.write(path, made)
            benches[name] = Bench(path, name, None)
            if name == FLOAT_ATTENTION:
                benches[f"{name}, {TENSOR}"] = Bench(path, name, TENSOR)
        torch_runs = torch_encoders(arguments.torch.split(",")) if arguments.torch else {}
        model = benches["W1A8"].model
        document = {
            **provenance("python bench/cuda.py"),
            "device": model.info["device"],
            "versions": {"torch": importlib.metadata.version("torch")} if torch_runs else {},
            "runs": arguments.runs,
            "results": measure(benches, torch_runs, arguments.runs),
            "sentences": SENTENCES,
            "sentences_per_s": sentences_per_s(model),
        }
    print(tables.cuda(document))
    if arguments.output is not None:
        write_results(arguments.output, document)


if __name__ == "__main__":
    main()
