"""Converts a PyTorch model of a family and holds the file, run by bitm, against it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import bitm_formats
from bitm import Model
from bitm_converter.checkpoint import open_checkpoint
from bitm_converter.recipes import Conversion, Options, choose
from families.low_bit import save, state_of, torch

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Differences:
    """The shares of sequences whose logits are off: of the file, of the evaluation in numpy."""

    of_runtime: float
    of_numpy: float


def convert(folder: Path, family: str = "auto", **options: Any) -> Conversion:
    """Without a vocabulary unless options name one."""
    checkpoint = open_checkpoint(folder)
    recipe = choose(checkpoint, family)
    return recipe.convert(checkpoint, Options(**{"use_vocab": "vocab" in options, **options}))


def convert_model(model: Any, folder: Path, container: str = "zip", **options: Any) -> Conversion:
    """Saves a model with its family's settings and converts it."""
    save(folder, state_of(model), model.family.settings, container)
    return convert(folder, **options)


def sequences(words: int, longest: int, n: int, seed: int = 5) -> list[tuple[Ids, Ids]]:
    """Random ids and types of random lengths, from one token to the longest."""
    rng = np.random.default_rng(seed)
    lengths = [1, longest, *rng.integers(2, longest + 1, n - 2)]
    return [(rng.integers(0, words, k), rng.integers(0, 2, k)) for k in lengths]


def torch_logits(model: Any, ids: Ids, types: Ids) -> npt.NDArray[np.float32]:
    """The model's answer to one sequence."""
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(torch.tensor(ids), torch.tensor(types)).numpy()
    return logits


def compare(
    model: Any, conversion: Conversion, path: Path, tolerance: float, n: int = 20
) -> Differences:
    """Writes the file and counts sequences whose logits are off by more than `tolerance`.

    Where values lie at thresholds, a different order of sums flips one now and then, and then all
    that follows differs: so few sequences may be off, but not by how much. That is judged by the
    caller; a batch must give, to the bit, what each of its sequences gives alone.
    """
    bitm_formats.write(path, conversion.model)
    sizes = model.family.sizes
    texts = sequences(sizes.words, sizes.positions, n)
    if conversion.model.metadata.get("token_type_ids") == "zero":
        texts = [(ids, np.zeros_like(types)) for ids, types in texts]
    ids, mask, types = batch_of(texts)
    of_tokens = conversion.model.config.head != bitm_formats.Head.CLASSIFIER
    with Model(path, activations="float32") as runtime:
        batch = runtime.logits(ids, mask, token_type_ids=types)
        alone = [runtime.logits([ids], token_type_ids=[types])[0] for ids, types in texts]
    evaluated = conversion.evaluate(ids, mask, types).logits
    assert evaluated is not None
    wrong = {"runtime": 0, "numpy": 0}
    for found, of_batch, of_numpy, (ids, types) in zip(alone, batch, evaluated, texts):
        real = slice(len(ids)) if of_tokens else slice(None)
        np.testing.assert_array_equal(found, of_batch[real])
        expected = torch_logits(model, ids, types)
        limit = tolerance * max(1.0, float(np.abs(expected).max()))
        wrong["runtime"] += bool(np.abs(found - expected).max() > limit)
        wrong["numpy"] += bool(np.abs(of_numpy[real] - expected).max() > limit)
    return Differences(wrong["runtime"] / n, wrong["numpy"] / n)


def batch_of(texts: list[tuple[Ids, Ids]]) -> tuple[Ids, Ids, Ids]:
    """Ids, mask and types [B, S], padded."""
    longest = max(len(ids) for ids, _ in texts)
    ids, mask, types = np.zeros((3, len(texts), longest), np.int64)
    for row, (own_ids, own_types) in enumerate(texts):
        n = len(own_ids)
        ids[row, :n], mask[row, :n], types[row, :n] = own_ids, 1, own_types
    return ids, mask, types
