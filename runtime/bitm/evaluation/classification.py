"""Accuracy of a sequence classifier on labelled texts, such as SST-2."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitm._arrays import pad, padding_mask
from bitm._native import softmax
from bitm.errors import InputError
from bitm.evaluation.masked_lm import Progress, encode
from bitm.evaluation.result import TaskRun
from bitm.evaluation.statistics import ratio
from bitm.evaluation.texts import read_utf8
from bitm.model import Model

TEXT_COLUMNS = ("sentence", "content", "text")
N_MISTAKES = 8

_REGRESSION, _SEVERAL_LABELS, _ONE_LOGIT = 1, 3, 4  # problems of formats/SPEC.md 3.2


@dataclass(frozen=True)
class Labelled:
    """A text, and its label as the data spell it: a name, or the number of one."""

    text: str
    label: str


def read_labelled(path: Path) -> list[Labelled]:
    """Reads a table with a header and tabs, of columns `label` and one of TEXT_COLUMNS.

    Raises:
        InputError: it is none.
        BitmError: it cannot be read.
    """
    lines = read_utf8(path).split("\n")
    header = lines[0].split("\t")
    columns = [header.index(name) for name in TEXT_COLUMNS if name in header]
    if "label" not in header or not columns:
        raise InputError(
            f"{path}: the first line is {lines[0][:80]!r}, expected names of columns with tabs "
            f"between them, among them label and one of {', '.join(TEXT_COLUMNS)}"
        )
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if not line:
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{path}: line {number} has {len(cells)} cells, the header has {len(header)}"
            )
        rows.append(Labelled(cells[columns[0]], cells[header.index("label")]))
    if not rows:
        raise InputError(f"{path}: a header without rows")
    return rows


def label_names(model: Model) -> list[str]:
    """Returns the names of a model's labels; two where one logit decides."""
    info = model.info
    n = 2 if info["problem"] == _ONE_LOGIT else info["n_labels"]
    return [info["metadata"].get(f"label.{i}", f"LABEL_{i}") for i in range(n)]


def evaluate(
    model: Model, rows: Sequence[Labelled], length: int, batch: int, progress: Progress | None
) -> TaskRun:
    """Labels all texts, cut to `length` tokens, and counts the right ones.

    Raises InputError where the model's labels are not those of the data, or no single label is
    what it predicts.
    """
    names = label_names(model)
    problem = model.info["problem"]
    if problem in (_REGRESSION, _SEVERAL_LABELS):
        raise InputError("accuracy is for models that predict one of several labels")
    truth = np.array([_number(row.label, names) for row in rows])
    encoded, n_cut = encode(model, [row.text for row in rows], length)
    logits = np.empty((len(rows), len(names)), np.float32)
    seconds = 0.0
    for begin in range(0, len(rows), batch):
        group = encoded[begin : begin + batch]
        start = time.perf_counter()
        of_group = model.logits(pad(group, 0), padding_mask(group))
        seconds += time.perf_counter() - start
        if problem == _ONE_LOGIT:  # label 0 has the logit 0
            of_group = np.concatenate([np.zeros_like(of_group[:, :1]), of_group[:, :1]], axis=1)
        logits[begin : begin + len(group)] = of_group
        if progress is not None:
            progress(begin + len(group), len(rows))
    found = logits.argmax(axis=1)
    if problem == _ONE_LOGIT:  # which is label 1 from 0 on
        found = (logits[:, 1] >= 0).astype(np.intp)
    scores = softmax(logits)
    return TaskRun(
        metrics={"accuracy": ratio(found == truth, np.ones(len(rows)))},
        n_sequences=len(rows),
        n_tokens=sum(map(len, encoded)),
        n_cut=n_cut,
        seconds=seconds,
        details={
            "labels": [
                {
                    "label": name,
                    "true": int((truth == i).sum()),
                    "predicted": int((found == i).sum()),
                    "right": int(((truth == i) & (found == i)).sum()),
                }
                for i, name in enumerate(names)
            ],
            "mistakes": _mistakes(rows, truth, found, scores, names),
        },
    )


def _number(label: str, names: Sequence[str]) -> int:
    lowered = [name.lower() for name in names]
    if Counter(lowered)[label.lower()] == 1:
        return lowered.index(label.lower())
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    raise InputError(
        f"the data have the label {label!r}, but the model's are {', '.join(names)}: "
        "expected one of these, or its number"
    )


def _mistakes(
    rows: Sequence[Labelled], truth: Any, found: Any, scores: Any, names: Sequence[str]
) -> list[dict[str, Any]]:
    """The mistakes that the model is most sure of."""
    wrong = np.flatnonzero(truth != found)
    order = wrong[np.argsort(-scores[wrong, found[wrong]], kind="stable")]
    return [
        {
            "text": rows[i].text,
            "true": names[truth[i]],
            "predicted": names[found[i]],
            "confidence": float(scores[i, found[i]]),
        }
        for i in order[:N_MISTAKES].tolist()
    ]
