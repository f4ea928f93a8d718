"""Exact match and F1 of a question-answering model on SQuAD v1.1."""

from __future__ import annotations

import json
import re
import string
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitm.errors import InputError
from bitm.evaluation.masked_lm import Progress
from bitm.evaluation.result import TaskRun
from bitm.evaluation.statistics import ratio
from bitm.evaluation.texts import read_utf8
from bitm.model import Model

MAX_ANSWER_TOKENS = 30  # as Devlin et al. 2019 had it
N_MISTAKES = 8

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Question:
    """A question on a text, and the answers that people gave."""

    question: str
    context: str
    answers: list[str]


def read_questions(path: Path) -> list[Question]:
    """Reads SQuAD's JSON, version 1.1.

    Raises:
        InputError: it is none.
        BitmError: it cannot be read.
    """
    try:
        return [
            Question(
                entry["question"],
                paragraph["context"],
                [answer["text"] for answer in entry["answers"]],
            )
            for article in json.loads(read_utf8(path))["data"]
            for paragraph in article["paragraphs"]
            for entry in paragraph["qas"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected SQuAD v1.1's JSON: {type(error).__name__}: {error}"
        ) from None


def normalize(answer: str) -> str:
    """What the official script compares: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(found: str, answers: Sequence[str]) -> bool:
    """Whether the answer is one of these, both normalized."""
    return any(normalize(found) == normalize(answer) for answer in answers)


def f1(found: str, answers: Sequence[str]) -> float:
    """The best F1 of the words of the answer against those of any of these, normalized."""
    return max(_f1(normalize(found).split(), normalize(answer).split()) for answer in answers)


def _f1(found: Sequence[str], true: Sequence[str]) -> float:
    n_same = sum((Counter(found) & Counter(true)).values())
    return 2 * n_same / (len(found) + len(true)) if n_same else 0.0


def evaluate(
    model: Model, questions: Sequence[Question], length: int, progress: Progress | None
) -> TaskRun:
    """Answers all questions, in windows of `length` tokens."""
    found: list[dict[str, Any]] = []
    seconds, n_tokens = 0.0, 0
    for number, question in enumerate(questions):
        n_tokens += len(model.tokenize(question.question)) + len(model.tokenize(question.context))
        start = time.perf_counter()
        answer = model.answer(
            question.question,
            question.context,
            max_seq_len=length,
            max_answer_len=MAX_ANSWER_TOKENS,
        )
        seconds += time.perf_counter() - start
        found.append(answer or {"answer": "", "score": 0.0})
        if progress is not None:
            progress(number + 1, len(questions))
    matches = [exact_match(a["answer"], q.answers) for a, q in zip(found, questions)]
    f1s = [f1(a["answer"], q.answers) for a, q in zip(found, questions)]
    ones = [1] * len(questions)
    return TaskRun(
        metrics={"exact_match": ratio(matches, ones), "f1": ratio(f1s, ones)},
        n_sequences=len(questions),
        n_tokens=n_tokens,
        n_cut=0,
        seconds=seconds,
        details={"mistakes": _mistakes(questions, found, f1s)},
    )


def _mistakes(
    questions: Sequence[Question], found: Sequence[dict[str, Any]], f1s: Sequence[float]
) -> list[dict[str, Any]]:
    """The wrong answers that the model is most sure of."""
    wrong = [i for i, value in enumerate(f1s) if value == 0]
    wrong.sort(key=lambda i: -found[i]["score"])
    return [
        {
            "text": questions[i].question,
            "true": " / ".join(dict.fromkeys(questions[i].answers)),
            "predicted": found[i]["answer"],
            "confidence": float(found[i]["score"]),
        }
        for i in wrong[:N_MISTAKES]
    ]
