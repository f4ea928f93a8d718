"""Results as text: one table, a column for each model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from bitm.evaluation.result import Result
from bitm.evaluation.statistics import Estimate

Row = tuple[str, list[str]]

NAMES = {
    "cross_entropy": "cross-entropy (nats)",
    "perplexity": "perplexity (e^CE)",
    "accuracy": "accuracy",
    "mrr": "MRR of the best 32",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "tag_accuracy": "accuracy of tags",
    "exact_match": "exact match",
}
_TASKS = {
    "masked LM": "masked LM",
    "classification": "accuracy of labels",
    "entities": "entity F1",
    "answers": "answers to questions",
}
_WIDTH = 34


def number(value: float, like: float | None = None) -> str:
    """A value of any size, with at least four digits, or with those that `like` would have."""
    if not math.isfinite(value):
        return "-"
    size = abs(value if like is None else like)
    digits = 4 if size < 10 else 2 if size < 1000 else 0
    return f"{value:,.{digits}f}" if size < 1e7 else f"{value:.3g}"


def estimate(found: Estimate) -> str:
    """A value and the half width of its interval."""
    if not math.isfinite(found.half_width):
        return number(found.value)
    return f"{number(found.value)} \u00b1 {number(found.half_width, like=found.value)}"


def megabytes(n_bytes: float | None) -> str:
    """Bytes in MB of 10^6."""
    return "-" if n_bytes is None else f"{n_bytes / 1e6:.2f} MB"


def millions(n: float) -> str:
    """A count in millions."""
    return f"{n / 1e6:,.1f} M"


def quality(results: Sequence[Result]) -> list[Row]:
    """What the models get right."""
    rows = [
        (NAMES[name], [estimate(result.metrics[name]) for result in results])
        for name in results[0].metrics
    ]
    if results[0].task == "masked LM":
        powers = [number(result.details["two_to_the_cross_entropy"]) for result in results]
        rows.insert(2, ("2^CE, as the original printed", powers))
    return rows


def comparisons(found: Sequence[Mapping[str, Estimate] | None]) -> list[Row]:
    """How the second and later models differ from the first; nothing where none was comparable."""
    if not any(found):
        return []
    return [
        (title, ["-", *("-" if each is None else estimate(each[key]) for each in found)])
        for key, title in (
            ("cross_entropy_difference", "cross-entropy beside the first"),
            ("agreement", "same best token as the first"),
        )
    ]


def behaviour(results: Sequence[Result]) -> list[Row]:
    """What masked LMs say."""
    if results[0].task != "masked LM":
        return []
    said = [result.details["predictions"] for result in results]
    most = [each["most_frequent"] for each in said]
    return [
        ("most frequent prediction", [f"'{each['token']}'" for each in most]),
        ("  its share", [f"{each['share']:.1%}" for each in most]),
        ("  its mean confidence", [f"{each['mean_confidence']:.3f}" for each in most]),
        (
            "entropy of predictions (bits)",
            [f"{e['entropy_of_predictions_bits']:.2f}" for e in said],
        ),
        ("  of the true tokens", [f"{e['entropy_of_targets_bits']:.2f}" for e in said]),
        ("mean confidence", [f"{each['mean_confidence']:.3f}" for each in said]),
        *_accuracy_by(results, "by_part", "part", "accuracy where "),
        *_accuracy_by(results, "by_frequency", "occurrences", "accuracy, seen "),
    ]


def _accuracy_by(results: Sequence[Result], key: str, label: str, title: str) -> list[Row]:
    names = list(dict.fromkeys(row[label] for result in results for row in result.details[key]))
    by_name = [{row[label]: row for row in result.details[key]} for result in results]
    return [
        (
            f"{title}{name}" + (" times" if label == "occurrences" else ""),
            [number(rows[name]["accuracy"].value) if name in rows else "-" for rows in by_name],
        )
        for name in names
    ]


def cost(results: Sequence[Result]) -> list[Row]:
    """Time, memory and operations."""

    def each(title: str, show: Callable[[Result], str]) -> Row:
        return title, [show(result) for result in results]

    what_head_serves = {"masked LM": "mask", "entities": "token", "answers": "token"}
    served = what_head_serves.get(results[0].task, "sequence")
    return [
        each("ms a sequence", lambda r: f"{r.ms_per_sequence:.3f}"),
        each("tokens a second", lambda r: f"{r.tokens_per_second:,.0f}"),
        each("file", lambda r: megabytes(r.file_bytes)),
        each("  layers", lambda r: megabytes(r.memory.layers)),
        each("  embeddings", lambda r: megabytes(r.memory.embeddings)),
        each("  head", lambda r: megabytes(r.memory.head)),
        each("all weights as float32", lambda r: megabytes(r.memory.as_float32)),
        each("the original's count", lambda r: megabytes(r.memory.as_counted_by_bitmaps)),
        each("peak memory of the process", lambda r: megabytes(r.peak_bytes)),
        each("multiply-adds a token: linears", lambda r: millions(r.operations.linears)),
        each("  of these with 1-bit weights", lambda r: f"{r.operations.one_bit_share:.1%}"),
        each("  attention, at mean length", lambda r: millions(r.operations.attention)),
        each(f"  head, for a {served}", lambda r: millions(r.operations.head)),
        each("bit operations a token: linears", lambda r: millions(r.operations.linear_bits)),
        each("  attention, at mean length", lambda r: millions(r.operations.attention_bits)),
        each(f"  head, for a {served}", lambda r: millions(r.operations.head_bits)),
    ]


def description(result: Result) -> list[tuple[str, str]]:
    """What was measured, and with what."""
    data, settings = result.data, result.settings
    of = (
        "" if data["sentences"] == data["sentences_in_file"] else f" of {data['sentences_in_file']}"
    )
    sizes = f"{data['sentences']}{of} sentences, read as {data['format']}"
    rows = [
        ("task", _TASKS[result.task]),
        ("data", f"{data['path']}: {sizes}"),
    ]
    cut = f", {result.cut} of them cut" if result.cut else ""
    length = f"sequences of at most {settings['length']} tokens{cut}"
    if result.task == "masked LM":
        unknown = data["unknown_tokens"] / data["tokens"]
        rows.append(("tokens", f"{data['tokens']}, {unknown:.1%} of them unknown; {length}"))
        rows.append(("protocol", protocol(settings)))
        rows.append(("masks", str(result.details["masks"])))
    else:
        rows.append(("tokens", f"{result.tokens}; {length}"))
    return rows


def protocol(settings: Mapping[str, object]) -> str:
    """How sentences were masked, in words."""
    if settings["protocol"] == "pseudo":
        return "pseudo: every token in turn is the one [MASK] of its sentence"
    as_bert = "of these 80 % become [MASK], 10 % a random token, 10 % stay"
    shares = {
        "bert": as_bert,
        "original": f"{as_bert}; unknown tokens are asked for too",
        "mask": "all of these become [MASK]",
    }[str(settings["protocol"])]
    times = f", masked {settings['repeat']} times" if settings["repeat"] != 1 else ""
    return f"{settings['protocol']}: 15 % of the tokens; {shares}; seed {settings['seed']}{times}"


def labels(results: Sequence[Result]) -> list[str]:
    """Names that tell the results apart: a model's, with its activations where it occurs twice."""
    names = [result.name for result in results]
    return [
        f"{result.name}, {result.activations}" if names.count(result.name) > 1 else result.name
        for result in results
    ]


def as_text(
    results: Sequence[Result], compared: Sequence[Mapping[str, Estimate] | None] = ()
) -> str:
    """Returns everything as a table for a terminal; `compared` is for results[1:]."""
    lines = [f"{name:<10} {value}" for name, value in description(results[0])]
    columns = [[result.name, result.activations] for result in results]
    sections: list[list[Row]] = [
        [("", [name for name, _ in columns]), ("activations", [mode for _, mode in columns])],
        quality(results) + comparisons(compared),
        behaviour(results),
        cost(results),
    ]
    cells = [cell for section in sections for _, row in section for cell in row]
    width = max(map(len, cells)) + 2
    for section in sections:
        lines += (
            [
                "",
                *(
                    f"{title:<{_WIDTH}}" + "".join(f"{c:>{width}}" for c in row)
                    for title, row in section
                ),
            ]
            if section
            else []
        )
    return "".join(f"{line.rstrip()}\n" for line in lines)
