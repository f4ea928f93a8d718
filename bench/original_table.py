"""The original project's table, of real 1-bit execution: what is left of a binarized BERT.

python bench/original_table.py bert-base-uncased/ ptb.valid.txt --trained bert-1bit.bitm

Binarizes a float checkpoint in every way of the project bitmaps (2020), and in those that it did
not try, runs each file, and prints the figures beside the original's. Its protocol is taken too:
unknown tokens are asked for, and 2 to the power of nats is left to it. Two differences remain: its
naive rows also binarized biases and LayerNorms of what they binarized, and its masks had another
random seed. With --wikitext, the pseudo-perplexity of WikiText-2 (one [MASK] at a time) is a column
more. Rows need each other for nothing: --jobs runs some of them side by side.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tables
from bitm import Model
from bitm.evaluation import Estimate, Settings, evaluate
from bitm.evaluation.command import Bar
from bitm_converter.cli import main as convert
from machine import provenance, write_results


class Row(NamedTuple):
    """A row of the table: what is binarized and how, and in which arithmetic it runs."""

    parts: str
    values: str
    options: tuple[str, ...]
    activations: str = "auto"


_SCHEMES = {"{0, 1}": "zero-one", "{-1, 1}": "sign"}
_COMPONENTS = {
    "All": "all",
    "Layers": "layers",
    "Layers except self-attention": "layers-except-attention",
    "Layers except FFN": "layers-except-ffn",
}
ROWS = [
    Row("None", "as it is", (), "float32"),
    *(
        Row(parts, values, ("--binarize", scheme, "--components", component))
        for parts, component in _COMPONENTS.items()
        for values, scheme in _SCHEMES.items()
    ),
    *(
        Row("Layers", f"XNOR, a scale a {scales}", ("--binarize", "xnor", "--scales", scales))
        for scales in ("tensor", "head", "row")
    ),
]
TRAINED = [Row("Layers", "trained 1-bit", (), mode) for mode in ("float32", "int16", "int8")]

# Of BERT-base on the validation set of the Penn Treebank. Of the naive rows the figures that are
# known are ranges: cross-entropy 8 to 11, accuracy under 0.02.
ORIGINAL = {
    "None": {"cross_entropy": "4.3050", "accuracy": "0.4017", "mrr": "0.4750", "megabytes": "417"},
    "Layers": {"cross_entropy": "8 to 11", "accuracy": "< 0.02"},
}


def model_file(checkpoint: Path, row: Row, folder: Path) -> Path:
    """The model of a row: converted from a checkpoint, unless it is a file already."""
    if checkpoint.suffix == ".bitm":
        return checkpoint
    path = folder / "model.bitm"
    status = convert([str(checkpoint), str(path), "--quiet", *row.options])
    if status != 0:
        raise SystemExit(status)
    return path


class Plan(NamedTuple):
    """What every row is measured on."""

    settings: Settings
    pseudo: Settings | None
    threads: int | None


def measure(plan: Plan, checkpoint: Path, row: Row) -> dict[str, Any]:
    """Makes the model of a row and evaluates it."""
    bar = Bar(f"{row.parts}, {row.values}, {row.activations}")
    found: dict[str, Estimate] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = model_file(checkpoint, row, Path(folder))
        with Model(path, threads=plan.threads, activations=row.activations) as model:
            result = evaluate(model, plan.settings, progress=bar).result
            if plan.pseudo is not None:
                alone = evaluate(model, plan.pseudo, progress=bar).result
                found["pseudo_perplexity"] = alone.metrics["perplexity"]
    bar.clear()
    most_frequent = result.details["predictions"]["most_frequent"]
    is_naive = bool(row.options) and "XNOR" not in row.values
    original = ORIGINAL.get(row.parts, {}) if is_naive or row.parts == "None" else {}
    return {
        "binarized": row.parts,
        "values": row.values,
        "activations": result.activations,
        **{
            name: {"value": estimate.value, "half_width": estimate.half_width}
            for name, estimate in (result.metrics | found).items()
        },
        "masks": result.details["masks"],
        "ms_per_sequence": result.ms_per_sequence,
        "file_bytes": result.file_bytes,
        "bytes_as_counted_by_the_original": result.memory.as_counted_by_bitmaps,
        "most_frequent_prediction": most_frequent["token"],
        "its_share": most_frequent["share"],
        "original": original,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a float masked LM, as bitm-convert takes it")
    parser.add_argument("data", type=Path, help="ptb.valid.txt")
    parser.add_argument(
        "--trained", type=Path, help="a checkpoint, or .bitm file, that was trained to be 1-bit"
    )
    parser.add_argument("--limit", type=int, help="so many sentences (default: all)")
    parser.add_argument("--wikitext", type=Path, help="wiki.valid.tokens")
    parser.add_argument("--wikitext-limit", type=int, help="so many paragraphs (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="rows measured side by side")
    parser.add_argument("--threads", type=int, help="of each (default: all CPUs)")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    settings = Settings(arguments.data, protocol="original", limit=arguments.limit)
    pseudo = None
    if arguments.wikitext is not None:
        pseudo = Settings(arguments.wikitext, protocol="pseudo", limit=arguments.wikitext_limit)
    wanted = [(arguments.checkpoint, row) for row in ROWS]
    if arguments.trained is not None:
        wanted += [(arguments.trained, row) for row in TRAINED]
    rows = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        work = partial(measure, Plan(settings, pseudo, arguments.threads))
        for found in pool.map(work, *zip(*wanted)):
            rows.append(found)
            print(*tables.original_row(found), sep="  ", flush=True)
    if arguments.output is not None:
        document = {
            **provenance("python bench/original_table.py"),
            "checkpoint": arguments.checkpoint.name,
            "trained": arguments.trained.name if arguments.trained else None,
            "data": arguments.data.name,
            "limit": arguments.limit,
            "wikitext": arguments.wikitext.name if pseudo else None,
            "wikitext_limit": arguments.wikitext_limit,
            "jobs": arguments.jobs,
            "threads": arguments.threads,
            "rows": rows,
        }
        write_results(arguments.output, document)


if __name__ == "__main__":
    main()
