"""Runs a masked LM on masked sentences, and keeps what it said of every mask."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from bitm._arrays import pad, padding_mask
from bitm._native import Floats, Int32s
from bitm.evaluation.masking import Int8s, Masking, Query
from bitm.evaluation.statistics import Floats64
from bitm.evaluation.texts import UNKNOWN
from bitm.model import Model

Progress = Callable[[int, int], None]  # steps done, steps in all

_MAX_LOGITS = 1 << 24  # held at once: 64 MB
_CHUNK_LOGITS = 1 << 19  # worked on at once: what a cache holds


@dataclass(frozen=True)
class Predictions:
    """What a model said of m masks, in the order of the data.

    Attributes:
        sentences: int64 [m], which sentence each mask is in.
        positions: int32 [m], its token there.
        targets: int32 [m], the true ids.
        parts: int8 [m], what stood there: numbers of masking.PARTS.
        losses: float64 [m], -ln of the probability of the true token.
        ranks: int64 [m], of the true token: 1 is best, equal logits rank by lower id.
        best: int32 [m], the tokens with the highest logit.
        confidences: float64 [m], their probabilities.
        entropies: float64 [m], of the predicted distributions, in nats.
    """

    sentences: npt.NDArray[np.int64]
    positions: Int32s
    targets: Int32s
    parts: Int8s
    losses: Floats64
    ranks: npt.NDArray[np.int64]
    best: Int32s
    confidences: Floats64
    entropies: Floats64


@dataclass(frozen=True)
class Run:
    """Predictions, and the time that the model took for them."""

    predictions: Predictions
    n_sequences: int
    n_tokens: int
    seconds: float


def encode(model: Model, sentences: Sequence[str], length: int) -> tuple[list[Int32s], int]:
    """Returns the ids of sentences, int32 [n] with n <= length, and how many had to be cut.

    UNKNOWN in a sentence becomes the unknown token. A sentence is cut before its [SEP].
    """
    info = model.info
    n_begin, n_end = int(info["cls_id"] >= 0), int(info["sep_id"] >= 0)
    unknown = np.array([info["unk_id"]], np.int32)
    encoded, n_cut = [], 0
    for sentence in sentences:
        parts = [np.array(model.tokenize(part), np.int32) for part in sentence.split(UNKNOWN)]
        first = parts[0]
        begin, end = first[:n_begin], first[len(first) - n_end :]
        pieces = [part[n_begin : len(part) - n_end] for part in parts]
        inner = pieces[0]
        if len(pieces) > 1:
            inner = np.concatenate([x for piece in pieces for x in (unknown, piece)][1:])
        room = length - n_begin - n_end
        n_cut += len(inner) > room
        encoded.append(np.concatenate([begin, inner[:room], end]))
    return encoded, n_cut


def predict(
    model: Model, queries: Sequence[Query], batch: int, progress: Progress | None = None
) -> Run:
    """Asks a masked LM all queries, at most `batch` sequences at a time.

    The predictions do not depend on the batch or on threads. Time is that of the model alone,
    after a run to warm up.
    """
    vocab_size = model.info["vocab_size"]
    longest = max(queries, key=lambda query: len(query.input_ids))
    _logits(model, [longest, longest])
    batches = list(_batches(queries, batch, max(1, _MAX_LOGITS // vocab_size)))
    collected: list[Predictions] = []
    seconds, n_done = 0.0, 0
    # numpy leaves the other threads alone where rows are long: judging is shared out as the run is.
    with ThreadPoolExecutor(model.info["threads"]) as pool:
        for members in batches:
            asked = [queries[i] for i in members]
            start = time.perf_counter()
            logits = _logits(model, asked)
            seconds += time.perf_counter() - start
            collected += pool.map(_judge, asked, logits)
            n_done += len(members)
            if progress is not None:
                progress(n_done, len(queries))
    order = np.argsort([i for members in batches for i in members], kind="stable")
    return Run(
        predictions=_join([collected[i] for i in order]),
        n_sequences=len(queries),
        n_tokens=sum(len(query.input_ids) for query in queries),
        seconds=seconds,
    )


def _batches(queries: Sequence[Query], most: int, most_rows: int) -> Iterator[list[int]]:
    """Yields the numbers of queries that run together.

    Logits come as [B, P, V] with P the most masks of a sequence: sequences of equally many masks
    run together, and never more than `most_rows` = B P.
    """
    order = sorted(range(len(queries)), key=lambda i: len(queries[i].positions))
    members: list[int] = []
    for i in order:
        n_masks = max(1, len(queries[i].positions))
        if members and (len(members) == most or (len(members) + 1) * n_masks > most_rows):
            yield members
            members = []
        members.append(i)
    if members:
        yield members


def _logits(model: Model, queries: Sequence[Query]) -> list[Floats]:
    """Returns the logits of every query, float32 [p, V]."""
    ids = [query.input_ids for query in queries]
    n_masks = [len(query.positions) for query in queries]
    # A position of -1 asks for nothing; there is at least one column.
    positions = np.full((len(queries), max(1, *n_masks)), -1, np.int32)
    for row, query in zip(positions, queries):
        row[: len(query.positions)] = query.positions
    logits = model.logits(pad(ids, 0), padding_mask(ids), positions=positions)
    return [rows[:n] for rows, n in zip(logits, n_masks)]


def _judge(query: Query, logits: Floats) -> Predictions:
    """Compares logits [p, V], which it overwrites, with the truth."""
    n = len(logits)
    judged = Predictions(
        sentences=np.full(n, query.sentence, np.int64),
        positions=query.positions,
        targets=query.targets,
        parts=query.parts,
        losses=np.empty(n),
        ranks=np.empty(n, np.int64),
        best=np.empty(n, np.int32),
        confidences=np.empty(n),
        entropies=np.empty(n),
    )
    n_rows = max(1, _CHUNK_LOGITS // logits.shape[1])
    for begin in range(0, n, n_rows):
        rows = slice(begin, begin + n_rows)
        (
            judged.losses[rows],
            judged.ranks[rows],
            judged.best[rows],
            judged.confidences[rows],
            judged.entropies[rows],
        ) = _judge_chunk(logits[rows], query.targets[rows])
    return judged


def _judge_chunk(logits: Floats, targets: Int32s) -> tuple[npt.NDArray[Any], ...]:
    """Returns losses, ranks, best tokens, confidences and entropies of logits [n, V]."""
    rows = np.arange(len(logits))
    best = logits.argmax(axis=1).astype(np.int32)
    logits -= logits[rows, best][:, np.newaxis]
    of_targets = logits[rows, targets]
    ranks = 1 + np.count_nonzero(logits > of_targets[:, np.newaxis], axis=1)
    for row, target, of_target in zip(rows, targets, of_targets):
        ranks[row] += np.count_nonzero(logits[row, :target] == of_target)
    exponentials = np.exp(logits)
    sums = exponentials.sum(axis=1).astype(np.float64)
    # -sum p ln p with p = e^x / s is ln s - sum e^x x / s.
    weighted = np.einsum("ij,ij->i", exponentials, logits).astype(np.float64)
    log_sums = np.log(sums)
    return log_sums - of_targets, ranks, best, 1 / sums, log_sums - weighted / sums


def _join(parts: Sequence[Predictions]) -> Predictions:
    names = [field.name for field in fields(Predictions)]
    return Predictions(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )


def mask_all(masking: Masking, sentences: Sequence[Int32s]) -> list[Query]:
    """Returns what is asked of all sentences, int32 [n] each."""
    return [query for i, ids in enumerate(sentences) for query in masking.queries(i, ids)]
