"""From a model and a file of data to a result: the task follows from the model's head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bitm._native import Int32s
from bitm.errors import InputError
from bitm.evaluation import analysis, answers, classification, cost, entities
from bitm.evaluation.masked_lm import Predictions, Progress, encode, mask_all, predict
from bitm.evaluation.masking import PROTOCOLS, Masking, Query
from bitm.evaluation.result import Result, TaskRun
from bitm.evaluation.statistics import Estimate, ratio, sums_by
from bitm.evaluation.texts import FORMATS, read_text
from bitm.model import Model

# Numbers of formats/SPEC.md 3.2.
_TASKS = {1: "masked LM", 2: "masked LM", 3: "classification", 4: "entities", 5: "answers"}

MASKED_LM_LENGTH = 64  # the original project's
ANSWERS_LENGTH = 384

Item = TypeVar("Item")


@dataclass(frozen=True)
class Settings:
    """What to evaluate on, and how.

    Attributes:
        data: text for a masked LM, a table with labels for a classifier, CoNLL's columns for a
            token classifier, SQuAD's JSON for question answering.
        format: of text: one of texts.FORMATS.
        protocol: how sentences are masked: one of masking.PROTOCOLS.
        length: tokens of a sequence at most, [CLS] and [SEP] included; None: 64 for a masked LM,
            384 for question answering, otherwise as many as the model takes.
        batch: sequences that run together.
        seed: of the masks.
        repeat: how often a masked LM's sentences are masked, with the seeds seed, seed + 1, ...
        limit: how many sentences, spread evenly over the file; None: all.
    """

    data: str | Path
    format: str = "auto"
    protocol: str = "bert"
    length: int | None = None
    batch: int = 128
    seed: int = 0
    repeat: int = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        """Raises InputError for what cannot be."""
        for name, value, choices in (
            ("format", self.format, FORMATS),
            ("protocol", self.protocol, PROTOCOLS),
        ):
            if value not in choices:
                raise InputError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
        for name, number, least in (
            ("length", self.length, 3),
            ("batch", self.batch, 1),
            ("seed", self.seed, 0),
            ("repeat", self.repeat, 1),
            ("limit", self.limit, 1),
        ):
            if number is not None and number < least:
                raise InputError(f"{name} is {number}, expected at least {least}")


@dataclass(frozen=True)
class Evaluation:
    """A result; of a masked LM also what it was asked and what it said, for comparisons."""

    result: Result
    queries: list[Query] | None = None
    predictions: Predictions | None = None


def evaluate(
    model: Model, settings: Settings, name: str | None = None, progress: Progress | None = None
) -> Evaluation:
    """Evaluates a model; `name` is what tables call it, by default its file's name.

    Raises:
        InputError: the data are not what the model's head needs, or the model has no head.
        BitmError: the data cannot be read.
    """
    info = model.info
    task = _TASKS.get(info["head"])
    if task is None:
        raise InputError("the model has no head: there is nothing to evaluate", 65, "NO_HEAD")
    can_measure_peak = cost.reset_peak()
    data: dict[str, Any] = {"path": str(settings.data)}
    length = _length(settings, task, info["max_positions"])
    used: dict[str, Any] = {"length": length, "batch": settings.batch}
    queries = predictions = None
    if task == "masked LM":
        run, queries, predictions = _masked_lm(model, settings, length, data, progress)
        used |= {
            "protocol": settings.protocol,
            "seed": settings.seed,
            "repeat": settings.repeat,
        }
    else:
        run = _labelled(model, settings, task, length, data, progress)
    tables = cost.read_tables(info["path"])
    return Evaluation(
        result=Result(
            name=name or Path(info["path"]).name,
            path=info["path"],
            task=task,
            activations=info["activations"],
            threads=info["threads"],
            kernels=info["kernels"],
            data=data,
            settings=used,
            metrics=run.metrics,
            sequences=run.n_sequences,
            tokens=run.n_tokens,
            cut=run.n_cut,
            seconds=run.seconds,
            file_bytes=info["file_bytes"],
            model_bytes=info["model_bytes"],
            session_bytes=info["session_bytes_1x128"],
            peak_bytes=cost.peak_bytes() if can_measure_peak else None,
            memory=cost.memory(tables),
            operations=cost.operations(tables, info["activations"], run.n_tokens / run.n_sequences),
            details=run.details,
        ),
        queries=queries,
        predictions=predictions,
    )


def _length(settings: Settings, task: str, most: int) -> int:
    wanted = {"masked LM": MASKED_LM_LENGTH, "answers": ANSWERS_LENGTH}.get(task, most)
    if settings.length is None:
        return min(wanted, most)
    if settings.length > most:
        raise InputError(f"length is {settings.length}, but the model has {most} positions")
    return settings.length


def _spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most so many of the items, at even distances."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


# ---- Masked LM ----


def _masked_lm(
    model: Model,
    settings: Settings,
    length: int,
    data: dict[str, Any],
    progress: Progress | None,
) -> tuple[TaskRun, list[Query], Predictions]:
    info = model.info
    if info["mask_id"] < 0 or info["n_tokens"] == 0:
        raise InputError("the model has no vocabulary with a mask token", 64, "NO_VOCABULARY")
    text = read_text(Path(settings.data), settings.format)
    sentences = _spread(text.sentences, settings.limit)
    encoded, n_cut = encode(model, sentences, length)
    n_maskings = 1 if settings.protocol == "pseudo" else settings.repeat
    queries = [
        query
        for i in range(n_maskings)
        for query in mask_all(Masking.of(info, settings.protocol, settings.seed + i), encoded)
    ]
    if not any(len(query.positions) for query in queries):
        raise InputError(f"{settings.data}: the protocol asks for no token of so short a text")
    run = predict(model, queries, settings.batch, progress)
    data |= {
        "format": text.format,
        "sentences": len(sentences),
        "sentences_in_file": len(text.sentences),
        "tokens": sum(map(len, encoded)),
        "unknown_tokens": sum(int((ids == info["unk_id"]).sum()) for ids in encoded),
    }
    task_run = TaskRun(
        metrics=masked_lm_metrics(run.predictions),
        n_sequences=run.n_sequences,
        n_tokens=run.n_tokens,
        n_cut=n_cut,
        seconds=run.seconds,
        details=_masked_lm_details(run.predictions, encoded, model.decode),
    )
    return task_run, queries, run.predictions


def masked_lm_metrics(predictions: Predictions) -> dict[str, Estimate]:
    """Returns cross-entropy, perplexity, accuracy and MRR over all masks.

    The interval of the perplexity is that of the cross-entropy, carried over to first order.
    """
    found = analysis.scores(predictions)
    entropy = found["cross_entropy"]
    perplexity = math.exp(min(entropy.value, 700))
    return {
        "cross_entropy": entropy,
        "perplexity": Estimate(perplexity, perplexity * entropy.half_width),
        "accuracy": found["accuracy"],
        "mrr": found["mrr"],
    }


def _masked_lm_details(
    predictions: Predictions,
    encoded: Sequence[Int32s],
    spell: Callable[[Sequence[int]], str],
) -> dict[str, Any]:
    confidence = analysis.by_confidence(predictions)
    return {
        "masks": len(predictions.losses),
        "two_to_the_cross_entropy": 2.0 ** min(predictions.losses.mean(), 1000),
        "predictions": analysis.what_is_predicted(predictions, spell),
        "by_part": analysis.by_part(predictions),
        "by_frequency": analysis.by_frequency(predictions, encoded),
        "by_confidence": confidence,
        "calibration_error": analysis.calibration_error(confidence),
        "ranks": analysis.rank_shares(predictions),
        "worst": analysis.worst_sentences(predictions, encoded, spell),
    }


# ---- Heads for labels ----


def _labelled(
    model: Model,
    settings: Settings,
    task: str,
    length: int,
    data: dict[str, Any],
    progress: Progress | None,
) -> TaskRun:
    if task == "classification":
        rows = classification.read_labelled(Path(settings.data))
        chosen = _spread(rows, settings.limit)
        run = classification.evaluate(model, chosen, length, settings.batch, progress)
        data |= {"format": "labels", "sentences": len(chosen), "sentences_in_file": len(rows)}
    elif task == "entities":
        tagged = entities.read_tagged(Path(settings.data))
        some = _spread(tagged, settings.limit)
        run = entities.evaluate(model, some, length, settings.batch, progress)
        data |= {"format": "CoNLL", "sentences": len(some), "sentences_in_file": len(tagged)}
    else:
        questions = answers.read_questions(Path(settings.data))
        asked = _spread(questions, settings.limit)
        run = answers.evaluate(model, asked, length, progress)
        data |= {"format": "SQuAD", "sentences": len(asked), "sentences_in_file": len(questions)}
    return run


# ---- Comparison ----


def compare(first: Evaluation, second: Evaluation) -> dict[str, Estimate] | None:
    """Compares two masked LMs mask by mask; None where they were not asked the same.

    Returns:
        agreement: the share of masks with the same best token;
        cross_entropy_difference: second minus first. Both saw the same sentences, so its interval
        is much narrower than theirs.
    """
    a, b = first.predictions, second.predictions
    if a is None or b is None or not _asked_the_same(first.queries or [], second.queries or []):
        return None
    n = int(a.sentences.max()) + 1
    counts = sums_by(a.sentences, np.ones(len(a.losses)), n)
    asked = counts > 0

    def mean(values: Any) -> Estimate:
        return ratio(sums_by(a.sentences, values, n)[asked], counts[asked])

    return {
        "agreement": mean(a.best == b.best),
        "cross_entropy_difference": mean(b.losses - a.losses),
    }


def _asked_the_same(first: Sequence[Query], second: Sequence[Query]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(a.input_ids, b.input_ids) and np.array_equal(a.positions, b.positions)
        for a, b in zip(first, second)
    )
