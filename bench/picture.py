"""Draws docs/speed.svg from results/compare_*.json: the picture of the numbers in the README.

python bench/picture.py            draws it
python bench/picture.py --check    fails where it is not of the present results
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import statistics
import sys
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
PICTURE = BENCH.parent / "docs/speed.svg"
LENGTHS = (16, 64, 128)
OURS = "bitm int8"
COLOURS = {
    OURS: "#0072b2",
    "onnxruntime int8": "#767c82",
    "openvino int8": "#a3a9af",
    "pytorch int8": "#c3c7cb",
    "pytorch fp32": "#dfe2e5",
}

Document = dict[str, Any]


def documents() -> dict[str, Document]:
    """{the widest instructions: results to draw}, one panel each."""
    return {
        path.stem.removeprefix("compare_").upper(): json.loads(path.read_text())
        for path in sorted(BENCH.glob("results/compare_*.json"))
    }


def digest() -> str:
    """Of the drawn results and this script: by it a stale picture is known."""
    files = [*sorted(BENCH.glob("results/compare_*.json")), Path(__file__)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def one_sentence(document: Document) -> dict[str, list[float]]:
    """{engine: median ms of the encoder for 1 x LENGTHS, one thread}, the slowest engine first."""
    clock = "cpu_ms" if document["clock"] == "cpu" else "ms"
    found: dict[str, dict[int, float]] = {}
    for row in document["results"]:
        if (row["task"], row["batch"], row["threads"]) == ("encoder", 1, 1):
            found.setdefault(row["engine"], {})[row["length"]] = statistics.median(row[clock])
    whole = {
        engine: [by_length[length] for length in LENGTHS]
        for engine, by_length in found.items()
        if engine in COLOURS and by_length.keys() >= set(LENGTHS)
    }
    return dict(sorted(whole.items(), key=lambda item: -item[1][-1]))


def draw(path: Path) -> None:
    """Writes the picture as SVG."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bitm", "font.size": 10})
    results = documents()
    figure, panels = plt.subplots(1, len(results), figsize=(5.4 * len(results), 3.6), squeeze=False)
    for axes, (isa, document) in zip(panels[0], results.items()):
        engines = one_sentence(document)
        width = 0.82 / len(engines)
        longest = max(times[-1] for times in engines.values())
        for k, (engine, times) in enumerate(engines.items()):
            at = [i + (k - (len(engines) - 1) / 2) * width for i in range(len(LENGTHS))]
            axes.bar(at, times, width * 0.92, label=engine, color=COLOURS[engine])
            for x, ms in zip(at, times):
                axes.text(x, ms + longest / 80, f"{ms:.3g}", ha="center", fontsize=7.5)
        axes.set_xticks(range(len(LENGTHS)), [f"{length} tokens" for length in LENGTHS])
        axes.set_ylabel("ms on one thread: less is better")
        axes.set_title(f"{document['machine'].replace('(R)', '')}, {isa}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left")
    figure.suptitle("One sequence through BERT-base's encoder", fontsize=11)
    figure.tight_layout()
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Identifier": digest()})
    path.write_text("".join(f"{line.rstrip()}\n" for line in drawn.getvalue().splitlines()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    if not parser.parse_args().check:
        draw(PICTURE)
    elif digest() not in PICTURE.read_text():
        sys.exit(f"{PICTURE} is not of the present results: run python bench/picture.py")


if __name__ == "__main__":
    main()
