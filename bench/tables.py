"""Renders results/*.json into the tables of README.md beside this file.

python bench/tables.py            writes them
python bench/tables.py --check    fails where they are not current
python bench/tables.py FILE       prints the table of a results file

A table stands between `<!-- results/NAME.json -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
README = BENCH / "README.md"
SECTION = re.compile(r"(<!-- (results/\w+\.json) -->\n).*?(<!-- end -->)", re.DOTALL)
MEASURED = "bitm "  # what begins the name of an engine of ours

Document = dict[str, Any]
Row = dict[str, Any]


def source(document: Document) -> str:
    """What every table stands on."""
    return (
        f"`{document['command']}`: {document['machine']}; commit {document['commit']},"
        f" {document['date']}."
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; columns but the first are numbers."""
    lines = [list(head)]
    lines.append(["---"] + ["---:"] * (len(lines[0]) - 1))
    lines += [list(row) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Three digits, never an exponent."""
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:,.{digits}f}"


# ---- One function a kind of results ----


def activation_modes(document: Document) -> str:
    rows = (
        (
            mode,
            f"{result['cross_entropy']:.4f}",
            f"{result['accuracy']:.4f}",
            f"{result['agreement']:.1%}",
            f"{result['seconds']:.1f}",
        )
        for mode, result in document["modes"].items()
    )
    head = ["mode", "cross-entropy", "accuracy", "same best token as float32", "seconds"]
    return f"{document['masks']} masks.\n\n{table(head, rows)}"


def ablations(document: Document) -> str:
    """A row a variant."""
    texts = ("wikipedia", "treebank")
    rows = (
        [f"{name} (`{result['options']}`)" if result["options"] else name]
        + [f"{result['steps']:,}"]
        + [f"{result[text][key]:.4f}" for text in texts for key in ("cross_entropy", "accuracy")]
        for name, result in document["variants"].items()
    )
    head = ["variant", "steps", "Wikipedia CE", "accuracy", "Penn Treebank CE", "accuracy"]
    return f"{document['minutes']:g} minutes each.\n\n{table(head, rows)}"


def cold_start(document: Document) -> str:
    file_bytes = document["file_bytes"]
    rows = (
        (
            result["what"],
            *(f"{result[name]} ms" for name in ("median_ms", "least_ms", "least_processor_ms")),
            f"{result['peak_bytes'] / 1e6:.1f} MB",
            f"{(result['peak_bytes'] - file_bytes) / 1e6:.1f} MB",
        )
        for result in document["runs"]
    )
    head = ["", "median", "least", "least processor time", "peak memory", "of it beside the file"]
    return table(head, rows)


def end_to_end(document: Document) -> str:
    rows = (
        (
            result["what"],
            str(result["threads"]),
            *(number(result[name]) for name in ("median_ms", "least_ms", "processor_ms")),
        )
        for result in document["runs"]
    )
    head = ["ms a sentence or sequence", "threads", "median", "least", "processor time"]
    tokens = document["tokens"]
    return (
        f"BERT-base, `{document['activations']}`; a sentence of {tokens['one']} tokens, and"
        f" {document['sentences']} of {tokens['least']} to {tokens['most']}, {tokens['mean']} on"
        f" average. The original project's Titan RTX: {document['original_ms']} ms a sequence of"
        f" 128 x 64, float32.\n\n{table(head, rows)}"
    )


def file_sizes(document: Document) -> str:
    rows = (
        (
            f"`{result['options'] or 'none'}`",
            f"{result['file_bytes'] / 1e6:.2f}",
            result["words"],
            f"{result['words_relative_error']:.2g}",
            f"{result['seconds']} ({result['cpu_seconds']})",
            f"{result['peak_bytes'] / 1e6:.0f}",
        )
        for result in document["conversions"]
    )
    head = ["options", "file, MB", "words", "their relative error", "seconds (CPU)", "peak MB"]
    return table(head, rows)


def perplexity(value: float) -> str:
    """Broken models have perplexities of any size."""
    return f"{value:,.1f}" if value < 1e5 else f"{value:.0e}"


def original_row(row: Row) -> list[str]:
    """A binarized model's figures beside the original's."""
    original = row["original"]
    return [
        row["binarized"],
        f"{row['values']}, {row['activations']}",
        *(f"{row[name]['value']:.4f}" for name in ("cross_entropy", "accuracy", "mrr")),
        f"{row['ms_per_sequence']:.2f}",
        f"{row['file_bytes'] / 1e6:.2f}",
        f"{row['bytes_as_counted_by_the_original'] / 2**20:.2f}",
        *([perplexity(row["pseudo_perplexity"]["value"])] if "pseudo_perplexity" in row else []),
        f"{row['its_share']:.0%} `{row['most_frequent_prediction']}`",
        *(original.get(name, "") for name in ("cross_entropy", "accuracy", "mrr", "megabytes")),
    ]


def original_table(document: Document) -> str:
    head = [
        "binarized",
        "values, activations",
        "CE",
        "accuracy",
        "MRR",
        "ms a sequence",
        "file, MB",
    ]
    head += [
        "the original's count, MiB",
        *(["pseudo-perplexity"] if document["wikitext"] else []),
        "says most",
        "its CE",
        "its accuracy",
        "its MRR",
        "its MB",
    ]
    sentences = f"{document['limit']} sentences" if document["limit"] else "All sentences"
    masks = document["rows"][0]["masks"]
    data = f"{sentences} of {document['data']}, {masks} masks"
    if document["wikitext"]:
        n = document["wikitext_limit"]
        data += f"; {f'{n} paragraphs' if n else 'all'} of {document['wikitext']}"
    if "jobs" in document:
        threads = document["threads"] or "all CPUs'"
        n = document["jobs"]
        data += f"; {f'{n} rows' if n > 1 else 'a row'} at a time, {threads} threads each"
    rows = map(original_row, document["rows"])
    models = f"{document['checkpoint']}, trained: {document['trained']}"
    return f"{models}. {data}.\n\n{table(head, rows)}"


def arm_cycles(document: Document) -> str:
    cores = list(document["loops"][0]["cycles"])

    def a_cycle(loop: Row, core: str) -> str:
        found, bound = loop["work_per_cycle"].get(core), loop["bound"].get(core)
        return "" if found is None else f"{found:.3g}" + (f" ({bound})" if bound else "")

    loops = (
        [f"{loop['kernel']}, {loop['unit']}s", *(a_cycle(loop, core) for core in cores)]
        for loop in document["loops"]
    )
    runs = (
        [f"{run['board']}, {run['ghz']} GHz", run["model"], f"1 x {run['length']}"]
        + [f"{run[f'{part}_ms']} ms" for part in ("bound", "linears", "one_thread", "four_threads")]
        for run in document["runs"]
    )
    head = ["board", "model", "tokens", "bound of the linears", "linears", "one thread"]
    return (
        f"{document['compiler']}; {document['mca']}.\n\n"
        "Work a cycle of the inner loops, beside the bound of the unit that limits them:\n\n"
        f"{table(['inner loop', *(f'{core}: a cycle (bound)' for core in cores)], loops)}\n\n"
        "The encoder of BERT-base; W1A1: every activation a sign or a bit, attention too; W1A8:"
        f" the mode `int8`:\n\n{table([*head, 'four threads'], runs)}"
    )


def nano(document: Document) -> str:
    """The limits of the GPU, and a row a run."""
    rates = ", ".join(f"{rate} {unit}" for unit, rate in document["results_a_clock"].items())
    parts = list(document["runs"][0]["parts_ms"])
    rows = (
        [f"{run['model']}, 1 x {run['length']}", number(run["total_ms"])]
        + [number(run["parts_ms"][part]) for part in parts]
        + [", ".join(run["limits"]), number(run["half2_linears_ms"])]
        for run in document["runs"]
    )
    head = ["floor of the encoder, ms", "all", *parts, "the linears' limit"]
    return (
        f"One multiprocessor at {document['clock_mhz']} MHz: {rates} a clock;"
        f" {document['gigabytes_per_s']} GB/s.\n\n"
        f"{table([*head, 'linears in half precision'], rows)}"
    )


def cuda(document: Document) -> str:
    """Times beside their floors and PyTorch's; then what was measured once."""
    shapes = dict.fromkeys((row["batch"], row["length"]) for row in document["results"])
    found = {(row["batch"], row["length"], row["what"]): row for row in document["results"]}
    names = list(dict.fromkeys(row["what"] for row in document["results"]))

    def cell(batch: int, length: int, name: str) -> str:
        row = found.get((batch, length, name))
        if row is None:
            return ""
        floor = f" ({row['floor_ms']:.3f})" if "floor_ms" in row else ""
        return number(row["ms"]) + floor

    rows = (
        [f"{batch}x{length}", *(cell(batch, length, name) for name in names)]
        for batch, length in shapes
    )
    machine = [document["device"], *(f"{k} {v}" for k, v in document["versions"].items())]
    return (
        f"{', '.join(machine)}. Median ms of {document['runs']} runs (floor).\n\n"
        f"{table(['batch x length', *names], rows)}\n\n"
        f"`fill_mask` of {document['sentences']:,} sentences in one call:"
        f" {number(document['sentences_per_s'])} a second."
    )


def comparison(document: Document) -> str:
    """Two tables for each number of threads: times, and how many times faster bitm is."""
    versions = [f"{name} {version}" for name, version in document["versions"].items() if version]
    parts = [f"{', '.join(versions)}."]
    if document["isa"] != "all":
        parts[0] += f" Kept to {document['isa']}."
    clock = "ms"
    if document["clock"] == "cpu":
        parts[0] += " CPU time: the machine did other work too."
        clock = "cpu_ms"
    for n_threads in sorted({row["threads"] for row in document["results"]}):
        rows = [row for row in document["results"] if row["threads"] == n_threads]
        title = f"**{n_threads} thread{'s' if n_threads > 1 else ''}**"
        ours = " / ".join(engines(rows, ours=True))
        parts.append(f"{title}, median ms of a run:\n\n{times(rows, clock)}")
        parts.append(f"{title}, how many times faster {ours} is:\n\n{ratios(rows, clock)}")
        wrong = {row["engine"] for row in rows if row["busy_threads"] > n_threads}
        if wrong:
            parts.append(f"More threads than that were used by {', '.join(sorted(wrong))}.")
    return "\n\n".join(parts)


def cells(rows: list[Row]) -> dict[str, dict[str, Row]]:
    """{cell: {engine: row}}, in the order of measuring."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        shape = f"{row['batch']}x{row['length']}"
        name = {"encoder": shape, "head": f"{shape}, head at one position"}.get(
            row["task"], f"fill_mask of a text, {shape}; others: encoder"
        )
        found.setdefault(name, {})[row["engine"]] = row
    return found


def engines(rows: list[Row], ours: bool) -> list[str]:
    named = dict.fromkeys(row["engine"] for row in rows)
    return [name for name in named if name.startswith(MEASURED) == ours]


def times(rows: list[Row], clock: str) -> str:
    columns = engines(rows, ours=True) + engines(rows, ours=False)
    return table(
        ["batch x length", *columns],
        (
            [name] + [number(statistics.median(row[e][clock])) if e in row else "" for e in columns]
            for name, row in cells(rows).items()
        ),
    )


def ratios(rows: list[Row], clock: str) -> str:
    """Medians of the ratios of rounds."""
    ours, peers = engines(rows, ours=True), engines(rows, ours=False)

    def ratio(row: dict[str, Row], peer: str, our: str) -> str:
        if peer not in row or our not in row:
            return "-"
        pairs = zip(row[peer][clock], row[our][clock])
        return number(statistics.median(theirs / mine for theirs, mine in pairs))

    return table(
        ["than", *peers],
        (
            [name] + [" / ".join(ratio(row, peer, our) for our in ours) for peer in peers]
            for name, row in cells(rows).items()
        ),
    )


def invariance(document: Document) -> str:
    """A row for every model and mode, all of whose runs gave one hash."""
    rows = (
        [row["family"], row["mode"], row["logits"], str(row["ways"]), row["verify"]]
        for row in document["rows"]
    )
    head = ["model", "activations", "logits", "ways to run it here"]
    tiers = ", ".join(document["tiers"])
    return (
        f"Kernels forced in turn: {tiers}.\n\n"
        f"{table([*head, '`bitm verify`: x86-64, aarch64, armv7'], rows)}"
    )


RENDERERS: dict[str, Callable[[Document], str]] = {
    "ablate": ablations,
    "activation_modes": activation_modes,
    "arm_cycles": arm_cycles,
    "check_invariance": invariance,
    "cold_start": cold_start,
    "cuda": cuda,
    "end_to_end": end_to_end,
    "file_sizes": file_sizes,
    "nano": nano,
    "original_table": original_table,
    "compare": comparison,
}


def render(path: Path) -> str:
    """The section of a results file, by the script that wrote it.

    Raises:
        SystemExit: no table is known for that script.
    """
    document = json.loads(path.read_text())
    script = re.search(r"(?:bench|tests|examples/demo_model)/(\w+)\.py", document["command"])
    if script is None or script[1] not in RENDERERS:
        raise SystemExit(f"{path}: no table for the results of {document['command']!r}")
    return f"{source(document)}\n\n{RENDERERS[script[1]](document)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("file", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.file is not None:
        print(render(arguments.file))
        return
    check = arguments.check
    text = README.read_text()
    current = SECTION.sub(lambda m: f"{m[1]}{render(BENCH / m[2])}{m[3]}", text)
    shown = {m[2] for m in SECTION.finditer(text)}
    for path in sorted((BENCH / "results").glob("*.json")):
        if f"results/{path.name}" not in shown:
            sys.exit(f"{README} has no section for results/{path.name}")
    if check and current != text:
        sys.exit(f"{README} is not current: run python bench/tables.py")
    if not check:
        README.write_text(current)


if __name__ == "__main__":
    main()
