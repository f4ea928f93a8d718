"""Masks of texts, and their best tokens as the transformers fill-mask pipeline describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitm._arrays import pad
from bitm._native import Int32s, Library
from bitm.errors import InputError

# Ids of filled texts that are written out at once: 1 MB, and 4 MB for what they spell.
_IDS_AT_ONCE = 1 << 18


def mask_positions(encoded: Sequence[Int32s], mask_id: int) -> Int32s:
    """Returns where the masks of each text are, int32 [B, P]; -1 behind a text's last.

    Raises:
        InputError: a text has none.
    """
    found = [(ids == mask_id).nonzero()[0] for ids in encoded]
    for i, positions in enumerate(found):
        if len(positions) == 0:
            name = f"text {i}" if len(encoded) > 1 else "the text"
            raise InputError(f"{name} has no mask token", 61, "NO_MASK")
    return pad(found, -1)


def describe(
    library: Library, ids: Int32s, positions: Int32s, best: npt.NDArray[Any]
) -> list[list[Any]]:
    """Returns the pipeline's answer to each text.

    Args:
        library: whose vocabulary spells.
        ids: int32 [B, S], texts with the id of padding behind them.
        positions: int32 [B, P], of `mask_positions`.
        best: PREDICTION [B, P, K].
    """
    texts, columns = (positions >= 0).nonzero()
    n_masks = np.bincount(texts)
    rows = best[texts, columns]
    tokens = rows["token"].copy()
    words = library.spellings(tokens.ravel())
    sequences = _sequences(
        library, ids[texts], positions[texts, columns], tokens, n_masks[texts] == 1
    )
    predictions = [
        {"score": score, "token": token, "token_str": word, "sequence": sequence}
        for (score, token), word, sequence in zip(rows.ravel().tolist(), words, sequences)
    ]
    top_k = tokens.shape[1]
    masks = [predictions[i : i + top_k] for i in range(0, len(predictions), top_k)]
    return [
        masks[end - 1] if n == 1 else masks[end - n : end]
        for n, end in zip(n_masks.tolist(), n_masks.cumsum().tolist())
    ]


def _sequences(
    library: Library,
    ids: Int32s,
    positions: npt.NDArray[np.int32],
    tokens: Int32s,
    is_single: npt.NDArray[np.bool_],
) -> list[str]:
    """Returns for each of M masks, of texts ids [M, S], the K with a token [M, K] in its place.

    Padding is left out, and where the mask is its text's only one, all special tokens are.
    """
    pad_id = library.properties["pad_id"]
    top_k = tokens.shape[1]
    sequences = [""] * tokens.size
    n_at_once = max(1, _IDS_AT_ONCE // ids.shape[1])
    for single in (False, True):
        alike = (is_single == single).repeat(top_k).nonzero()[0]
        for begin in range(0, len(alike), n_at_once):
            places = alike[begin : begin + n_at_once]
            masks = places // top_k
            filled = ids[masks]
            filled[np.arange(len(filled)), positions[masks]] = tokens.ravel()[places]
            kept = filled != pad_id
            ends = kept.sum(axis=1).cumsum().tolist()
            written = library.decode_rows(filled[kept], ends, skip_special_tokens=single)
            for place, sequence in zip(places.tolist(), written):
                sequences[place] = sequence
    return sequences
