"""File sizes of BERT-base by format, with the time and memory that the conversion took.

python bench/file_sizes.py

Writes a random checkpoint of bert-base-uncased's shapes (masked LM, decoder tied, no pooler) and
converts it with each set of options.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

import tables
from machine import provenance, write_results

OPTIONS = (
    "",
    "--embeddings fp16 --matrices fp16",
    "--embeddings int8 --matrices int8",
    "--binarize xnor --embeddings fp32",
    "--binarize xnor",
    "--binarize xnor --embeddings int8",
    "--binarize xnor --embeddings bit1",
    "--binarize xnor --embeddings bit1 --embedding-scales row",
    "--binarize xnor --components all",
)
HIDDEN, INNER, LAYERS, HEADS, WORDS, POSITIONS, TYPES = 768, 3072, 12, 12, 30_522, 512, 2
TOKEN_BYTES = 7  # bert-base-uncased's have 6.6 on average

Shapes = dict[str, tuple[int, ...]]


def shapes() -> Shapes:
    """Names and shapes of a BertForMaskedLM."""
    result: Shapes = {
        "bert.embeddings.word_embeddings.weight": (WORDS, HIDDEN),
        "bert.embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "bert.embeddings.token_type_embeddings.weight": (TYPES, HIDDEN),
        "cls.predictions.bias": (WORDS,),
    }
    linears = {"cls.predictions.transform.dense": (HIDDEN, HIDDEN)}
    norms = ["bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    for n in range(LAYERS):
        layer = f"bert.encoder.layer.{n}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linears[f"{layer}.attention.{part}"] = (HIDDEN, HIDDEN)
        linears[f"{layer}.intermediate.dense"] = (INNER, HIDDEN)
        linears[f"{layer}.output.dense"] = (HIDDEN, INNER)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name, (rows, columns) in linears.items():
        result |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for name in norms:
        result |= {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}
    return result


def make_checkpoint(folder: Path) -> None:
    """Writes model.safetensors (438 MB), config.json and vocab.txt."""
    rng = np.random.default_rng(0)

    state: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in shapes().items():
        state[name] = rng.standard_normal(shape, dtype=np.float32)
        state[name] *= 0.04
    save_file(state, folder / "model.safetensors")
    config = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "vocab_size": WORDS,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": TYPES,
    }
    (folder / "config.json").write_text(json.dumps(config))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = special + [f"{n:0{TOKEN_BYTES}}" for n in range(WORDS - len(special))]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))


def convert(folder: Path, options: str) -> dict[str, Any]:
    """Runs bitm-convert; its file's size and words' loss, its seconds and peak memory."""
    command = [sys.executable, "-m", "bitm_converter.cli", str(folder), str(folder / "model.bitm")]
    command += ["--json", *options.split()]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    rows = {row["slot"]: row for row in report["tensors"]}
    words = rows["embeddings.word.weight"]
    return {
        "options": options,
        "file_bytes": report["totals"]["file_bytes"],
        "words": words["stored"],
        "words_relative_error": words["loss"]["relative"] if words["loss"] else 0.0,
        "encoder_bytes": report["totals"]["encoder_matrices"]["bytes_after"],
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def measure(folder: Path) -> list[dict[str, Any]]:
    """One entry for each of OPTIONS."""
    make_checkpoint(folder)
    results = []
    for options in OPTIONS:
        print(f"bitm-convert {options}", file=sys.stderr)
        results.append(convert(folder, options))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where 1 GB may be written for a minute")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = measure(Path(folder))
    document = {**provenance("python bench/file_sizes.py"), "conversions": results}
    if arguments.output is not None:
        write_results(arguments.output, document)
    print(tables.file_sizes(document))


if __name__ == "__main__":
    main()
