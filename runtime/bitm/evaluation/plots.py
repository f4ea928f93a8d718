"""Pictures of results, as PNG; the only part of bitm that needs matplotlib."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bitm.errors import UnsupportedError
from bitm.evaluation import tables
from bitm.evaluation.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that colour-blind people tell apart too (Okabe and Ito 2008), darkest first.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GREY, _LIGHT = "#5f6368", "#dadce0"
_RANK_COLOURS = ("#08519c", "#3182bd", "#6baed6", "#bdd7e7", "#e5e5e5")
_WIDTH, _DPI = 7.2, 160
MOST_COMMON_PLOTS = 4


def require() -> None:
    """Raises UnsupportedError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError(
            "plots need matplotlib, which is not installed: pip install 'bitm[plot]'",
            4,
            "UNSUPPORTED",
        )


def draw(results: Sequence[Result]) -> dict[str, bytes]:
    """Returns the pictures by name, PNG files each."""
    require()
    images = {"memory": _memory(results)}
    if results[0].task == "masked LM":
        images["ranks"] = _ranks(results)
        images["frequency"] = _accuracy(
            results, "by_frequency", "occurrences", "how often the token occurs in the data"
        )
        images["parts"] = _accuracy(results, "by_part", "part", "what stood in the token's place")
        images["confidence"] = _confidence(results)
        for number, result in enumerate(results[:MOST_COMMON_PLOTS], start=1):
            images[f"predictions-{number}"] = _common(result)
    return images


def _figure(height: float) -> tuple[Figure, Axes]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {
        "font.size": 10,
        "font.family": "DejaVu Sans",
        "axes.edgecolor": _GREY,
        "axes.labelcolor": _GREY,
        "xtick.color": _GREY,
        "ytick.color": "#202124",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "text.parse_math": False,  # tokens may have dollars
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
        return figure, figure.add_subplot()


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    # Without the date and version that would make equal pictures differ.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _bars(n: int) -> float:
    return 0.9 + 0.42 * n


def _memory(results: Sequence[Result]) -> bytes:
    """Where a file's bytes are, beside the same weights as float32 and the original's count."""
    labels = tables.labels(results)
    rows: list[tuple[str, list[float]]] = []
    for label, result in dict(zip((r.path for r in results), zip(labels, results))).values():
        m = result.memory
        name = label if len({r.path for r in results}) > 1 else "bitm"
        rows += [
            (f"{name}", [m.layers, m.embeddings, m.head]),
            (f"{name}: the original's count", [m.as_counted_by_bitmaps]),
            (f"{name}: as float32", [m.as_float32]),
        ]
    figure, axes = _figure(_bars(len(rows)))
    parts = ("layers", "embeddings", "head")
    for y, (_, sizes) in enumerate(rows):
        left = 0.0
        for i, size in enumerate(sizes):
            colour = COLOURS[i] if len(sizes) > 1 else _LIGHT
            shown = parts[i] if y == 0 else None
            axes.barh(y, size / 1e6, left=left / 1e6, color=colour, height=0.66, label=shown)
            left += size
        axes.annotate(f" {left / 1e6:.1f} MB", (left / 1e6, y), va="center", color=_GREY)
    _name_bars(axes, [name for name, _ in rows])
    axes.set_xlabel("MB of weights")
    axes.margins(x=0.12)
    axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    return _png(figure)


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=_LIGHT, linewidth=0.6)


def _ranks(results: Sequence[Result]) -> bytes:
    """Stacked bars: where the true token ranks among the predictions."""
    figure, axes = _figure(_bars(len(results)) + 0.3)
    for y, result in enumerate(results):
        left = 0.0
        for row, colour in zip(result.details["ranks"], _RANK_COLOURS):
            shown = f"rank {row['ranks']}" if y == 0 else None
            axes.barh(y, row["share"], left=left, color=colour, height=0.66, label=shown)
            if row["share"] > 0.05:
                dark = colour in _RANK_COLOURS[:2]
                axes.annotate(
                    f"{row['share']:.0%}",
                    (left + row["share"] / 2, y),
                    ha="center",
                    va="center",
                    color="white" if dark else "#202124",
                )
            left += row["share"]
    _name_bars(axes, tables.labels(results))
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.set_xlabel("share of the masks")
    axes.legend(frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
    return _png(figure)


def _accuracy(results: Sequence[Result], key: str, label: str, title: str) -> bytes:
    """Grouped bars of accuracy with its intervals."""
    names = list(dict.fromkeys(row[label] for result in results for row in result.details[key]))
    figure, axes = _figure(2.9)
    width = 0.8 / len(results)
    for i, (name, result) in enumerate(zip(tables.labels(results), results)):
        rows: dict[str, Mapping[str, Any]] = {row[label]: row for row in result.details[key]}
        places = [x for x, each in enumerate(names) if each in rows]
        found = [rows[names[x]]["accuracy"] for x in places]
        axes.bar(
            np.array(places) + (i - (len(results) - 1) / 2) * width,
            [each.value for each in found],
            width * 0.92,
            yerr=[np.nan_to_num(each.half_width) for each in found],
            color=COLOURS[i % len(COLOURS)],
            error_kw={"ecolor": _GREY, "elinewidth": 1, "capsize": 2},
            label=name,
        )
    counts = {row[label]: row["masks"] for row in results[0].details[key]}
    axes.set_xticks(range(len(names)), [f"{n}\n{counts.get(n, 0):,} masks" for n in names])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(title)
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1)
    axes.grid(axis="y", color=_LIGHT, linewidth=0.6)
    _legend(axes, results)
    return _png(figure)


def _legend(axes: Axes, results: Sequence[Result]) -> None:
    if len(results) > 1:
        axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)


def _confidence(results: Sequence[Result]) -> bytes:
    """How often predictions are right, by how sure the model is of them."""
    figure, axes = _figure(3.4)
    axes.plot([0, 1], [0, 1], color=_LIGHT, linestyle="--", linewidth=1)
    axes.annotate("as right as sure", (0.97, 0.95), ha="right", va="top", color=_GREY, fontsize=9)
    for i, (name, result) in enumerate(zip(tables.labels(results), results)):
        rows = result.details["by_confidence"]
        n = sum(row["masks"] for row in rows)
        colour = COLOURS[i % len(COLOURS)]
        x, y = ([row[key] for row in rows] for key in ("confidence", "accuracy"))
        axes.plot(x, y, color=colour, linewidth=1.4, label=name)
        sizes = [12 + 500 * row["masks"] / n for row in rows]
        axes.scatter(x, y, s=sizes, color=colour, alpha=0.75, linewidths=0, clip_on=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.04)
    axes.set_xlabel("confidence of the prediction (larger dots: more masks)")
    axes.set_ylabel("accuracy")
    axes.grid(color=_LIGHT, linewidth=0.6)
    _legend(axes, results)
    return _png(figure)


def _common(result: Result) -> bytes:
    """What the model says most, beside how often it is true."""
    rows = result.details["predictions"]["common"]
    figure, axes = _figure(_bars(len(rows)) * 0.72 + 0.4)
    places = np.arange(len(rows))
    for offset, key, colour, name in (
        (-0.2, "predicted_share", COLOURS[0], "predicted"),
        (0.2, "true_share", _LIGHT, "true"),
    ):
        axes.barh(places + offset, [row[key] for row in rows], 0.38, color=colour, label=name)
    _name_bars(axes, [row["token"] for row in rows])
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}" if x >= 0.1 else f"{x:.1%}")
    axes.set_xlabel("share of the masks")
    axes.legend(frameon=False, loc="lower right")
    return _png(figure)
