"""One page of HTML that tells a person what an evaluation found; it needs no network."""

from __future__ import annotations

import base64
import datetime
import html
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitm._native import version
from bitm.evaluation import tables
from bitm.evaluation.result import Result
from bitm.evaluation.statistics import Estimate

Compared = Sequence[Mapping[str, Estimate] | None]

_STYLE = """
:root { --ink: #202124; --soft: #5f6368; --line: #e3e5e8; --accent: #0072b2; --wash: #f6f8fa; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .2rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .4rem; }
p, dl { margin: .4rem 0 1rem; } .soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); gap: .7rem;
  margin: 1.6rem 0; }
.card { background: var(--wash); border-radius: .6rem; padding: .8rem; line-height: 1.35; }
.card b { display: block; font-size: 1.3rem; line-height: 1.35; color: var(--accent);
  white-space: nowrap; }
.card small { display: block; color: var(--soft); font-size: .78rem; line-height: 1.35; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; margin: .6rem 0 1rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; } thead th { color: var(--soft);
  font-weight: 600; border-bottom: 2px solid var(--line); }
td.words, th.words { text-align: left; }
td.indented { padding-left: 1.6rem; color: var(--soft); }
.wide { overflow-x: auto; } img { width: 100%; height: auto; display: block; }
.sentence { border-left: 3px solid var(--line); padding: .1rem 0 .1rem 1rem; margin: 1rem 0; }
.sentence p { margin: .15rem 0; } .said { color: #b3261e; }
mark { background: #fde7c7; border-radius: .2rem; padding: 0 .18rem; }
mark.right { background: #d3eedd; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0 0 0 1rem; color: #3c4043; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem;
  color: var(--soft); font-size: .85rem; }
@media print { main { max-width: none; } h2 { break-after: avoid; } img { break-inside: avoid; } }
"""


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all; raises OSError."""
    handle, name = tempfile.mkstemp(prefix=".bitm-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def page(results: Sequence[Result], compared: Compared, images: Mapping[str, bytes]) -> str:
    """Returns the page; the pictures are in it."""
    names = tables.labels(results)
    title = names[0] if len(names) == 1 else f"{len(names)} models compared"
    sections = [_head(title, results), _cards(results[0], names)]
    sections += _quality(results, names, compared)
    if results[0].task == "masked LM":
        sections += _masked_lm(results, names, images)
    else:
        sections += [_details(result, name) for result, name in zip(results, names)]
    sections += [_cost(results, names, images), _method(results[0]), _footer(results)]
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>bitm eval: {_escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _escaped(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode())


def _image(images: Mapping[str, bytes], name: str, description: str) -> str:
    data = base64.b64encode(images[name]).decode()
    return f'<img alt="{_escaped(description)}" src="data:image/png;base64,{data}">'


def _table(rows: Sequence[tables.Row], names: Sequence[str]) -> str:
    head = "".join(f"<th>{_escaped(name)}</th>" for name in names)
    lines = []
    for title, cells in rows:
        indented = ' class="indented"' if title.startswith(" ") else ""
        values = "".join(f"<td>{_escaped(cell)}</td>" for cell in cells)
        lines.append(f"<tr><td{indented}>{_escaped(title.strip())}</td>{values}</tr>")
    return (
        f'<div class="wide"><table>\n<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


# ---- Sections ----


def _head(title: str, results: Sequence[Result]) -> str:
    lines = "<br>\n".join(
        f"<b>{_escaped(name)}</b> {_escaped(text)}" for name, text in tables.description(results[0])
    )
    return f'<h1>{_escaped(title)}</h1>\n<p class="soft">{lines}</p>'


def _cards(result: Result, names: Sequence[str]) -> str:
    cards = []
    for key, found in result.metrics.items():
        interval = f"{tables.number(found.low)} to {tables.number(found.high)}"
        cards.append((tables.number(found.value), tables.NAMES[key], interval))
    cards += [
        (f"{result.ms_per_sequence:.2f} ms", "a sequence", f"{result.threads} threads"),
        (
            tables.megabytes(result.file_bytes),
            "file",
            f"{result.memory.as_float32 / result.file_bytes:.1f} times smaller than float32",
        ),
    ]
    boxes = "\n".join(
        f'<div class="card"><b>{_escaped(value)}</b>{_escaped(name)}'
        f"<small>{_escaped(note)}</small></div>"
        for value, name, note in cards
    )
    of = f'<p class="soft">Figures of {_escaped(names[0])}:</p>\n' if len(names) > 1 else ""
    return f'{of}<div class="cards">\n{boxes}\n</div>'


def _quality(results: Sequence[Result], names: Sequence[str], compared: Compared) -> list[str]:
    rows = tables.quality(results) + tables.comparisons(compared)
    return [
        "<h2>How much it gets right</h2>",
        '<p class="soft">Each figure with half of its 95 % confidence interval.</p>',
        _table(rows, names),
    ]


def _masked_lm(
    results: Sequence[Result], names: Sequence[str], images: Mapping[str, bytes]
) -> list[str]:
    sections = [
        _image(images, "ranks", "Where the true token ranks among the predictions"),
        "<h2>Where it is right</h2>",
        "<p>Common words are easier than rare ones, and a token that was left in its place is "
        "easier than one that was hidden; a random token in its place misleads.</p>",
        _image(images, "frequency", "Accuracy by the token's frequency"),
        _image(images, "parts", "Accuracy by what stood in the token's place"),
        "<h2>Whether it knows what it knows</h2>",
        f"<p>Predictions by how probable the model itself takes them to be. {_calibration(results)}"
        "</p>",
        _image(images, "confidence", "Accuracy by confidence"),
        "<h2>What it says</h2>",
        "<p>A broken model says the same few tokens whatever it is asked: one has a large share, "
        "and the entropy of the predictions is far below that of the truth.</p>",
        _table(tables.behaviour(results)[:6], names),
    ]
    for number, name in enumerate(names, start=1):
        key = f"predictions-{number}"
        if key in images:
            sections.append(f"<p><b>{_escaped(name)}</b>: its most frequent predictions</p>")
            sections.append(_image(images, key, "The most frequent predictions"))
    sections.append("<h2>The worst sentences</h2>")
    sections.append(
        "<p>Those with the highest mean loss, with the true tokens in their places; "
        "<mark>wrong</mark> and <mark class='right'>right</mark> predictions.</p>"
    )
    for result, name in zip(results[:1], names):
        if len(names) > 1:
            sections.append(f"<p>Of <b>{_escaped(name)}</b>:</p>")
        sections += [_sentence(row) for row in result.details["worst"]]
    return sections


def _calibration(results: Sequence[Result]) -> str:
    errors = ", ".join(f"{result.details['calibration_error']:.1%}" for result in results)
    return f"On average confidence and accuracy differ by {errors} (expected calibration error)."


def _sentence(row: Mapping[str, Any]) -> str:
    masks = {mask["position"]: mask for mask in row["masks"]}
    words, answers = [], []
    for position, token in enumerate(row["tokens"]):
        mask = masks.get(position)
        if mask is None:
            words.append(_piece(token))
            continue
        kind = ' class="right"' if mask["rank"] == 1 else ""
        words.append(_piece(token, f"<mark{kind}>", "</mark>"))
        if mask["rank"] > 1:
            answers.append(
                f'<span class="said">{_quoted(mask["predicted"])}</span> '
                f"({mask['confidence']:.0%}) for {_quoted(mask['true'])}, rank {mask['rank']:,}"
            )
    said = f" It said {'; '.join(answers)}." if answers else ""
    return (
        f'<div class="sentence"><p>{"".join(words)}</p>\n'
        f'<p class="soft">Sentence {row["sentence"]}, mean loss {row["mean_loss"]:.2f}.{said}</p>'
        "</div>"
    )


def _piece(token: str, before: str = "", after: str = "") -> str:
    """A token as text: pieces of a word follow it at once."""
    space = "" if token.startswith("##") else " "
    return f"{space}{before}{_escaped(token.removeprefix('##'))}{after}"


def _quoted(token: str) -> str:
    return f"\u201c{_escaped(token)}\u201d"


def _details(result: Result, name: str) -> str:
    """Of a head for labels: its counts, and its mistakes."""
    parts = [f"<h2>{_escaped(name)}: where it is wrong</h2>"]
    for key in ("labels", "types"):
        rows = result.details.get(key, [])
        if rows:
            title = key.removesuffix("s")
            columns = [column for column in rows[0] if column != title]
            parts.append(
                _table([(row[title], [_cell(row[c]) for c in columns]) for row in rows], columns)
            )
    shown = [column for column in ("text", "true", "predicted", "confidence")]
    mistakes = [row for row in result.details["mistakes"]]
    if mistakes:
        head = "".join(f'<th class="words">{c}</th>' for c in shown if c in mistakes[0])
        body = "\n".join(
            "<tr>"
            + "".join(
                f'<td class="words">{_escaped(_cell(row[c]))}</td>' for c in shown if c in row
            )
            + "</tr>"
            for row in mistakes
        )
        parts.append(f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>")
    return "\n".join(parts)


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _cost(results: Sequence[Result], names: Sequence[str], images: Mapping[str, bytes]) -> str:
    return "\n".join(
        [
            "<h2>What it costs</h2>",
            _image(images, "memory", "Bytes of weights"),
            _table(tables.cost(results), names),
        ]
    )


def _method(result: Result) -> str:
    """How to read the figures."""
    terms = {
        "interval": "95 %, for other sentences of the same kind: the sentence is what is sampled "
        "(linearized variance of a ratio).",
        "the original's count": "the bytes that the project bitmaps reported: a bit for each "
        "weight of a binary matrix, 4 bytes for every other parameter. Nothing ran in so few.",
        "peak memory": "of the whole process, with Python, numpy and the evaluation's own arrays.",
        "bit operations": "each multiply-add times the bits of its two factors: 8 for a 1-bit "
        "weight and an 8-bit activation, 1,024 for two float32.",
        "time": "that of the model alone, for all sequences, after a run to warm up.",
    }
    if result.task == "masked LM":
        terms = {
            "cross-entropy": "mean of -ln p(true token) over the masks; special tokens are never "
            "asked for.",
            "2^CE": "the original project raised 2 to a number in nats and called it perplexity; "
            "it is here for comparison with its figures alone.",
            "MRR": "mean of 1 / rank of the true token, 0 beyond rank 32.",
            **terms,
        }
    items = "\n".join(
        f"<dt>{_escaped(name)}</dt><dd>{_escaped(text)}</dd>" for name, text in terms.items()
    )
    return f"<h2>How to read this</h2>\n<dl>\n{items}\n</dl>"


def _footer(results: Sequence[Result]) -> str:
    kernels = ", ".join(f"{op} {variant}" for op, variant in results[0].kernels.items())
    today = datetime.date.today().isoformat()
    return (
        f"<footer>Made on {today} by bitm {_escaped(version())} on {_escaped(platform.machine())}, "
        f"{results[0].threads} threads; activations {_escaped(results[0].activations)}; kernels: "
        f"{_escaped(kernels)}.</footer>"
    )
