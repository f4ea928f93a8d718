"""Holds a written file against the checkpoint that it was made from.

The runtime runs the file, numpy runs the checkpoint, both on the same random tokens. No file of the
project but this one needs both the converter and the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bitm_formats import Config

from .errors import VerificationError
from .recipes import Conversion
from .reference import Ids

# The file holds the checkpoint's very values: what remains is the order of float32 sums, about
# 3e-5 in the models measured.
EXACT_LIMIT = 1e-3
# Values were rounded to fp16: differences then grow with the outputs; up to 5e-4 of the largest
# one was measured.
ROUNDED_LIMIT = 2e-3

LOGITS = "logits"  # as an output's name

_PADDED_LENGTHS = (1, 5, 16)
_LONGEST = 64
_SEED = 20_261_121


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference of one output, and how large it may be."""

    output: str
    worst: float
    limit: float


@dataclass(frozen=True)
class Verification:
    """What was compared: hidden states by layer (embeddings first), then logits if there are."""

    differences: list[Difference]
    n_tokens: int

    @property
    def worst(self) -> Difference:
        """The output that comes closest to its limit, or is farthest beyond."""
        return max(self.differences, key=lambda d: d.worst / d.limit)

    @property
    def passed(self) -> bool:
        """Whether every difference is within its limit."""
        return all(difference.worst <= difference.limit for difference in self.differences)


def verify(path: Path, conversion: Conversion) -> Verification:
    """Compares the file at `path` with the checkpoint that `conversion` came from.

    Raises VerificationError if the runtime is not there or refuses the file.
    """
    try:
        from bitm import BitmError, Model
    except ImportError as error:
        raise VerificationError(path, f"needs the bitm runtime: {error}") from None
    comparison = _Comparison(is_exact=all(row.rounding == 0 for row in conversion.rows))
    try:
        with Model(path, activations="float32") as model:
            for inputs in _inputs(conversion.model.config):
                _compare(comparison, model, conversion, inputs)
    except BitmError as error:
        raise VerificationError(path, f"the runtime refuses it: {error}") from None
    return comparison.result()


@dataclass(frozen=True)
class _Inputs:
    """A batch: ids, mask and types [B, S]; for one in which every layer is looked at, each layer
    is a run of its own, so that one is small."""

    ids: Ids
    mask: Ids
    types: Ids
    every_layer: bool


def _inputs(config: Config) -> Iterator[_Inputs]:
    """A padded batch of short sequences, and one long sequence; always the same."""
    rng = np.random.default_rng(_SEED)
    longest = min(_LONGEST, config.max_positions)
    padded = tuple(min(n, longest) for n in _PADDED_LENGTHS)
    for lengths, every_layer in ((padded, True), ((longest,), False)):
        shape = (len(lengths), max(lengths))
        mask = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
        ids = rng.integers(config.vocab_size, size=shape) * mask
        types = rng.integers(config.n_token_types, size=shape) * mask
        yield _Inputs(ids, mask, types, every_layer)


def _compare(comparison: _Comparison, model: Any, conversion: Conversion, inputs: _Inputs) -> None:
    arrays = (inputs.ids, inputs.mask, inputs.types)
    expected = conversion.evaluate(*arrays)
    is_real = inputs.mask != 0
    comparison.n_tokens += int(is_real.sum())
    last = len(expected.hidden_states) - 1
    for layer in range(last + 1) if inputs.every_layer else [last]:
        name = f"hidden states of layer {layer}" if layer else "embeddings"
        found = model.hidden_states(*arrays, layer=layer)
        comparison.add(name, found[is_real], expected.hidden_states[layer][is_real])
    if expected.logits is not None:
        found = model.logits(*arrays)
        of_tokens = expected.logits.ndim == 3
        comparison.add(
            LOGITS,
            found[is_real] if of_tokens else found,
            expected.logits[is_real] if of_tokens else expected.logits,
        )


class _Comparison:
    """Collects differences over several batches."""

    def __init__(self, is_exact: bool) -> None:
        self.n_tokens = 0
        self._is_exact = is_exact
        self._worst: dict[str, float] = {}
        self._largest: dict[str, float] = {}

    def add(self, output: str, found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
        difference = np.abs(found - expected).max()
        # A NaN must not vanish in a comparison.
        worst = float(difference) if np.isfinite(difference) else float("inf")
        self._worst[output] = max(worst, self._worst.get(output, 0.0))
        largest = float(np.abs(expected).max())
        self._largest[output] = max(largest, self._largest.get(output, 1.0))

    def result(self) -> Verification:
        return Verification(
            [Difference(name, self._worst[name], self._limit(name)) for name in self._worst],
            self.n_tokens,
        )

    def _limit(self, output: str) -> float:
        return EXACT_LIMIT if self._is_exact else ROUNDED_LIMIT * self._largest[output]
