"""From the start and end logits of tokens to answers.

The arithmetic is that of the question-answering pipeline of transformers 4 (version 5 has no such
pipeline any more): DrQA's product of the start's and the end's probability (Chen and others, 2017).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bitm import _native
from bitm._native import Floats, Spans

Answer = dict[str, Any]
Bools = npt.NDArray[np.bool_]

_MASKED_LOGIT = -10000.0


class Window(NamedTuple):
    """A part of the context behind the question: S tokens, of which those from `first` are it.

    Attributes:
        logits: float32 [S, 2], start and end.
        first: index of the context's first token; it has N in this window.
        spans: int [N, 2], the characters of the context that they come from.
        continues: bool [N], the token goes on with the word of the one before it.
    """

    logits: Floats
    first: int
    spans: Spans
    continues: Bools


def split(n: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Returns [begin, end) of windows of `room` of n tokens that overlap by `stride`."""
    windows = [(0, min(room, n))]
    while windows[-1][1] < n:
        begin = windows[-1][0] + room - stride
        windows.append((begin, min(begin + room, n)))
    return windows


def find(
    windows: Sequence[Window],
    context: str,
    top_k: int,
    max_answer_len: int,
    align_to_words: bool,
    handle_impossible_answer: bool,
) -> list[Answer]:
    """Returns the best answers, best first; equal texts count as one answer, by their sum.

    The empty answer has the least probability of the [CLS] token over all windows.  It also stands
    in, with score 0, where no span has a probability above 0.
    """
    answers: dict[str, Answer] = {}
    null_score = 1.0
    # Several spans may become one when they are aligned to words.
    n_spans = 2 * top_k + 10 if align_to_words else top_k
    for window in windows:
        starts, ends, null = _probabilities(window)
        null_score = min(null_score, null)
        for first, last, score in _best_spans(starts, ends, n_spans, max_answer_len):
            if align_to_words:
                first, last = _whole_words(window.continues, first, last)
            begin, end = int(window.spans[first, 0]), int(window.spans[last, 1])
            text = context[begin:end]
            answer = {"score": 0.0, "start": begin, "end": end, "answer": text}
            answers.setdefault(text.lower(), answer)["score"] += score
    found = list(answers.values())
    if handle_impossible_answer or not found:
        score = null_score if handle_impossible_answer else 0.0
        found.append({"score": score, "start": 0, "end": 0, "answer": ""})
    return sorted(found, key=lambda answer: float(answer["score"]), reverse=True)[:top_k]


def _probabilities(window: Window) -> tuple[Floats, Floats, float]:
    """Returns those of the context's tokens to be start and end [N], and of the empty answer.

    The softmax runs over the context and the [CLS] token, which means that there is no answer.
    """
    is_candidate = np.zeros(len(window.logits), np.bool_)
    is_candidate[0] = True
    is_candidate[window.first : window.first + len(window.spans)] = True
    logits = np.where(is_candidate[:, np.newaxis], window.logits, np.float32(_MASKED_LOGIT))
    starts, ends = _native.softmax(logits.T)
    of_context = slice(window.first, window.first + len(window.spans))
    return starts[of_context], ends[of_context], float(starts[0] * ends[0])


def _best_spans(
    starts: Floats, ends: Floats, n: int, max_answer_len: int
) -> Iterator[tuple[int, int, float]]:
    """Yields first token, last token and score of the n best spans that are possible."""
    scores = np.tril(np.triu(np.outer(starts, ends)), max_answer_len - 1)
    flat = scores.ravel()
    for place in np.argsort(-flat, kind="stable")[:n].tolist():
        if flat[place] > 0:
            yield place // len(ends), place % len(ends), float(flat[place])


def _whole_words(continues: Bools, first: int, last: int) -> tuple[int, int]:
    while first > 0 and continues[first]:
        first -= 1
    while last + 1 < len(continues) and continues[last + 1]:
        last += 1
    return first, last
