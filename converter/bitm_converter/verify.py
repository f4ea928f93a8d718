"""Holds a written file against the checkpoint that it was made from.

The runtime runs the file, numpy runs the checkpoint, both on the same random tokens. No file of the
project but this one needs both the converter and the runtime.

Every layer, and the head, begins in numpy with the states that the runtime had before it, so that
each shows its own differences alone. Where activations are quantized, a value that rounding moves
over a threshold changes all that follows from it, by much more than rounding: two right programs
then differ at a layer in some sequences. A layer that is wrong differs in all. So of many short
sequences a share must agree there, not every one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitm_formats import ModelFile

from .errors import VerificationError
from .recipes import Conversion
from .reference import Ids

# The file holds the checkpoint's very values: what remains is the order of float32 sums, about
# 3e-5 in the models measured.
EXACT_LIMIT = 1e-3
# Values were rounded to fp16: differences then grow with the outputs; up to 5e-4 of the largest
# one was measured.
ROUNDED_LIMIT = 2e-3

# The share of sequences that must keep to the limits where activations are quantized. Layers of a
# BERT-base were measured to move a value over a threshold in none (signs) or in up to one in eight
# (8 bits) of the sequences below.
QUANTIZED_SHARE = 0.5

EMBEDDINGS, LOGITS = "embeddings", "logits"  # as an output's name

_PADDED_LENGTHS = (1, 5, 16)
_LONGEST = 64
# One token alone would say nothing of attention.
_QUANTIZED_LENGTHS = (2, 3, 4) * 8
_SEED = 20_261_121


@dataclass(frozen=True)
class Difference:
    """How much one output differs, and how much it may: `worst` is the largest absolute difference
    in the sequences that agree best, as many as the verification's share."""

    output: str
    worst: float
    limit: float


@dataclass(frozen=True)
class Verification:
    """What was compared: hidden states by layer (embeddings first), then logits if there are.

    `share` of the sequences are judged, 1 unless activations are quantized; of the embeddings,
    which come before, all are.
    """

    differences: list[Difference]
    n_tokens: int
    share: float = 1.0

    @property
    def worst(self) -> Difference:
        """The output that comes closest to its limit, or is farthest beyond."""
        return max(self.differences, key=lambda d: d.worst / d.limit)

    @property
    def passed(self) -> bool:
        """Whether every difference is within its limit."""
        return all(difference.worst <= difference.limit for difference in self.differences)


def verify(path: Path, conversion: Conversion, shown_as: Path) -> Verification:
    """Compares the file at `path` with the checkpoint that `conversion` came from.

    `shown_as` is what errors call the file. Raises VerificationError if the runtime is not there or
    refuses the file.
    """
    try:
        from bitm import BitmError, Model
    except ImportError as error:
        raise VerificationError(shown_as, f"needs the bitm runtime: {error}") from None
    comparison = _Comparison(
        is_exact=all(row.rounding == 0 for row in conversion.rows),
        is_quantized=bool(conversion.model.quantizers),
    )
    try:
        with Model(path, activations="float32") as model:
            for inputs in _inputs(conversion.model):
                _compare(comparison, model, conversion, inputs)
    except BitmError as error:
        problem = str(error).removeprefix(f"{path}: ")
        raise VerificationError(shown_as, f"the runtime refuses it: {problem}") from None
    return comparison.result()


def _inputs(model: ModelFile) -> Iterator[tuple[Ids, Ids, Ids]]:
    """Ids, masks and types [B, S] of padded batches, always the same."""
    rng = np.random.default_rng(_SEED)
    config = model.config
    longest = min(_LONGEST, config.max_positions)
    n_types = 1 if model.metadata.get("token_type_ids") == "zero" else config.n_token_types
    batches = [_QUANTIZED_LENGTHS] if model.quantizers else [_PADDED_LENGTHS, (longest,)]
    for wanted in batches:
        lengths = [min(n, longest) for n in wanted]
        shape = (len(lengths), max(lengths))
        mask = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
        ids = rng.integers(config.vocab_size, size=shape) * mask
        yield ids, mask, rng.integers(n_types, size=shape) * mask


def _compare(
    comparison: _Comparison, model: Any, conversion: Conversion, inputs: tuple[Ids, Ids, Ids]
) -> None:
    n_layers = conversion.model.config.n_layers
    found = [model.hidden_states(*inputs, layer=n) for n in range(n_layers + 1)]
    expected = conversion.evaluate(*inputs, given_states=found)
    is_real = inputs[1] != 0
    comparison.n_tokens += int(is_real.sum())
    for n in range(n_layers + 1):
        name = f"hidden states of layer {n}" if n else EMBEDDINGS
        comparison.add(name, found[n], expected.hidden_states[n], is_real)
    if expected.logits is not None:
        of_tokens = expected.logits.ndim == 3
        every = np.ones(len(is_real), bool)
        comparison.add(
            LOGITS, model.logits(*inputs), expected.logits, is_real if of_tokens else every
        )


class _Comparison:
    """Collects differences over several batches."""

    def __init__(self, is_exact: bool, is_quantized: bool) -> None:
        self.n_tokens = 0
        self._is_exact = is_exact
        self._share = QUANTIZED_SHARE if is_quantized else 1.0
        self._worst: dict[str, list[float]] = {}  # of each sequence
        self._largest: dict[str, float] = {}

    def add(
        self,
        output: str,
        found: npt.NDArray[Any],
        expected: npt.NDArray[Any],
        is_real: npt.NDArray[np.bool_],
    ) -> None:
        """Adds a batch [B, ...]; only what `is_real`, [B] or [B, S], counts."""
        difference = np.abs(found - expected)
        # A NaN must not vanish in a comparison.
        difference[~np.isfinite(difference)] = np.inf
        for sequence, own in zip(difference, is_real):
            self._worst.setdefault(output, []).append(float(sequence[own].max()))
        largest = float(np.abs(expected[is_real]).max())
        self._largest[output] = max(largest, self._largest.get(output, 1.0))

    def result(self) -> Verification:
        """What the batches so far amount to."""
        differences = [
            Difference(output, self._difference(output), self._limit(output))
            for output in self._worst
        ]
        return Verification(differences, self.n_tokens, self._share)

    def _difference(self, output: str) -> float:
        worst = sorted(self._worst[output])
        share = 1.0 if output == EMBEDDINGS else self._share
        return worst[math.ceil(share * len(worst)) - 1]

    def _limit(self, output: str) -> float:
        return EXACT_LIMIT if self._is_exact else ROUNDED_LIMIT * self._largest[output]
