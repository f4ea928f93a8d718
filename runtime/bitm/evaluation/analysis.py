"""What a masked LM gets wrong, and what it says instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitm._native import Int32s
from bitm.evaluation.masked_lm import Predictions
from bitm.evaluation.masking import PARTS
from bitm.evaluation.statistics import Estimate, Floats64, ratio, sums_by

MRR_RANKS = 32  # the original project's MRR counts the best 32 predictions alone
FREQUENCY_BOUNDS = (1, 3, 10, 30, 100, 300, 1000)
N_COMMON_TOKENS, N_WORST_SENTENCES, N_CONFIDENCE_BINS = 15, 8, 10

Spell = Callable[[Sequence[int]], str]
Bools = npt.NDArray[np.bool_]


def scores(predictions: Predictions, chosen: Bools | None = None) -> dict[str, Estimate]:
    """Returns cross-entropy in nats, accuracy and MRR of the chosen masks, by default of all."""
    p = predictions
    if chosen is None:
        chosen = np.ones(len(p.losses), np.bool_)
    return {
        "cross_entropy": mean_over_masks(p, p.losses, chosen),
        "accuracy": mean_over_masks(p, p.ranks == 1, chosen),
        "mrr": mean_over_masks(p, np.where(p.ranks <= MRR_RANKS, 1 / p.ranks, 0), chosen),
    }


def mean_over_masks(predictions: Predictions, values: npt.ArrayLike, chosen: Bools) -> Estimate:
    """Returns the mean of values [m] over the chosen masks; the sentence is what is sampled."""
    sentences = predictions.sentences
    n = int(sentences.max()) + 1 if len(sentences) else 0
    sums = sums_by(sentences, np.asarray(values) * chosen, n)
    counts = sums_by(sentences, chosen, n)
    asked = counts > 0
    return ratio(sums[asked], counts[asked])


def by_part(predictions: Predictions) -> list[dict[str, Any]]:
    """Returns the scores where [MASK] stood, where another token did, and where it was kept."""
    rows = []
    for number, name in enumerate(PARTS):
        chosen = predictions.parts == number
        if chosen.any():
            found = scores(predictions, chosen)
            rows.append({"part": name, "masks": int(chosen.sum()), **found})
    return rows


def by_frequency(predictions: Predictions, sentences: Sequence[Int32s]) -> list[dict[str, Any]]:
    """Returns the scores for tokens that are rare and frequent in the data itself."""
    counts = np.bincount(np.concatenate(sentences))
    frequencies = counts[predictions.targets]
    rows = []
    for low, bound in zip(FREQUENCY_BOUNDS, (*FREQUENCY_BOUNDS[1:], None)):
        chosen = frequencies >= low
        if bound is not None:
            chosen &= frequencies < bound
        if chosen.any():
            name = f"{low}+" if bound is None else _range(low, bound - 1)
            found = scores(predictions, chosen)
            rows.append({"occurrences": name, "masks": int(chosen.sum()), **found})
    return rows


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def by_confidence(predictions: Predictions) -> list[dict[str, float]]:
    """Returns how often the best token is right where the model is so confident of it."""
    bins = np.minimum(
        (predictions.confidences * N_CONFIDENCE_BINS).astype(np.int64), N_CONFIDENCE_BINS - 1
    )
    rows = []
    for number in np.unique(bins):
        chosen = bins == number
        rows.append(
            {
                "masks": int(chosen.sum()),
                "confidence": float(predictions.confidences[chosen].mean()),
                "accuracy": float((predictions.ranks[chosen] == 1).mean()),
            }
        )
    return rows


def calibration_error(rows: Sequence[dict[str, float]]) -> float:
    """Returns the expected calibration error (Guo et al. 2017) of `by_confidence`."""
    n = sum(row["masks"] for row in rows)
    return sum(row["masks"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / n


def what_is_predicted(predictions: Predictions, spell: Spell) -> dict[str, Any]:
    """Returns which tokens the model says most, and how varied its words are.

    A broken model says one token whatever it is asked. Entropies are of the distribution of best
    tokens over all masks, and of the true ones, in bits; `mean_entropy` is that of the distribution
    that a prediction is, in nats.
    """
    p = predictions
    n = len(p.best)
    tokens, counts = np.unique(p.best, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    most = p.best == tokens[order[0]]
    return {
        "most_frequent": {
            "token": spell([int(tokens[order[0]])]),
            "share": float(most.mean()),
            "mean_confidence": float(p.confidences[most].mean()),
        },
        "distinct_predictions": len(tokens),
        "distinct_targets": len(np.unique(p.targets)),
        "entropy_of_predictions_bits": _entropy_bits(counts),
        "entropy_of_targets_bits": _entropy_bits(np.unique(p.targets, return_counts=True)[1]),
        "mean_confidence": float(p.confidences.mean()),
        "mean_entropy": float(p.entropies.mean()),
        "common": [
            {
                "token": spell([int(tokens[i])]),
                "predicted_share": counts[i] / n,
                "true_share": float((p.targets == tokens[i]).mean()),
            }
            for i in order[:N_COMMON_TOKENS]
        ],
    }


def _entropy_bits(counts: npt.NDArray[np.int64]) -> float:
    shares: Floats64 = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def rank_shares(predictions: Predictions) -> list[dict[str, Any]]:
    """Returns where the true token ranks among the predictions."""
    ranks = predictions.ranks
    bounds = ((1, 1), (2, 5), (6, MRR_RANKS), (MRR_RANKS + 1, 1000))
    rows = [
        {"ranks": _range(low, high), "share": float(((ranks >= low) & (ranks <= high)).mean())}
        for low, high in bounds
    ]
    return [*rows, {"ranks": "1001+", "share": float((ranks > 1000).mean())}]


def worst_sentences(
    predictions: Predictions, sentences: Sequence[Int32s], spell: Spell
) -> list[dict[str, Any]]:
    """Returns the sentences of at least two masks with the highest mean loss, worst first."""
    p = predictions
    counts = sums_by(p.sentences, np.ones(len(p.losses)), len(sentences))
    means = sums_by(p.sentences, p.losses, len(sentences)) / np.maximum(counts, 1)
    candidates = np.flatnonzero(counts >= 2)
    worst = candidates[np.argsort(-means[candidates], kind="stable")][:N_WORST_SENTENCES]
    return [
        {
            "sentence": int(i) + 1,
            "mean_loss": float(means[i]),
            "perplexity": math.exp(min(means[i], 700)),
            **_marked(p, np.flatnonzero(p.sentences == i), sentences[i], spell),
        }
        for i in worst
    ]


def _marked(
    p: Predictions, masks: npt.NDArray[np.intp], ids: Int32s, spell: Spell
) -> dict[str, Any]:
    """The tokens of a sentence, and what was asked and answered there."""
    return {
        "tokens": [spell([int(token)]) for token in ids],
        "masks": [
            {
                "position": int(p.positions[i]),
                "part": PARTS[p.parts[i]],
                "true": spell([int(p.targets[i])]),
                "predicted": spell([int(p.best[i])]),
                "confidence": float(p.confidences[i]),
                "rank": int(p.ranks[i]),
                "loss": float(p.losses[i]),
            }
            for i in masks
        ],
    }
