"""The original project's table, of real 1-bit execution: what is left of a binarized BERT.

python bench/original_table.py bert-base-uncased/ ptb.valid.txt --trained bert-1bit/

Binarizes a float checkpoint in every way of the project bitmaps (2020), and in those that it did
not try, runs each file, and prints the figures beside the original's. Its protocol is taken too:
unknown tokens are asked for, and 2 to the power of nats is left to it. Two differences remain: its
naive rows also binarized biases and LayerNorms of what they binarized, and its masks had another
random seed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import tables
from bitm import Model
from bitm.evaluation import Settings, evaluate
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
    Row("None", "as it is", ()),
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


def measure(row: Row, checkpoint: Path, folder: Path, settings: Settings) -> dict[str, Any]:
    """Converts and evaluates one row."""
    path = folder / "model.bitm"
    status = convert([str(checkpoint), str(path), "--quiet", *row.options])
    if status != 0:
        raise SystemExit(status)
    bar = Bar(f"{row.parts}, {row.values}, {row.activations}")
    with Model(path, activations=row.activations) as model:
        result = evaluate(model, settings, progress=bar).result
    bar.clear()
    most_frequent = result.details["predictions"]["most_frequent"]
    is_naive = bool(row.options) and "XNOR" not in row.values
    original = ORIGINAL.get(row.parts, {}) if is_naive or row.parts == "None" else {}
    return {
        "binarized": row.parts,
        "values": row.values,
        "activations": result.activations,
        **{
            name: {"value": found.value, "half_width": found.half_width}
            for name, found in result.metrics.items()
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
    parser.add_argument("--trained", type=Path, help="a checkpoint that was trained to be 1-bit")
    parser.add_argument("--limit", type=int, help="so many sentences (default: all)")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    settings = Settings(arguments.data, protocol="original", limit=arguments.limit)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for checkpoint, wanted in ((arguments.checkpoint, ROWS), (arguments.trained, TRAINED)):
            for row in wanted if checkpoint is not None else []:
                rows.append(measure(row, checkpoint, Path(folder), settings))
                print(*tables.original_row(rows[-1]), sep="  ", flush=True)
    if arguments.output is not None:
        document = {
            **provenance("python bench/original_table.py"),
            "checkpoint": arguments.checkpoint.name,
            "trained": arguments.trained.name if arguments.trained else None,
            "data": arguments.data.name,
            "limit": arguments.limit,
            "rows": rows,
        }
        write_results(arguments.output, document)


if __name__ == "__main__":
    main()
