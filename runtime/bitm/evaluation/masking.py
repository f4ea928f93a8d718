"""What a masked LM is asked about a sentence: which tokens, and what stands in their places.

Every draw is made of the seed and the sentence's token ids alone (SHAKE-128 of both), so a sentence
is masked alike in any file, order, batch and number of threads, with any version of numpy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitm._native import Int32s

Int8s = npt.NDArray[np.int8]

# What stands in the place of a token that is asked for: [MASK], any token, or the token itself.
PARTS = ("masked", "random", "kept")
MASKED, RANDOM, KEPT = range(3)

PROTOCOLS = ("bert", "original", "mask", "pseudo")
CHOSEN_SHARE = 0.15
_ONE_MASK = np.full(1, MASKED, np.int8)
_BERT_SHARES = (0.8, 0.9)  # below: [MASK]; below: a random token; else the token itself


@dataclass(frozen=True)
class Query:
    """A sequence as the model sees it, and what it is asked.

    Attributes:
        sentence: the number of the sentence in the data.
        input_ids: int32 [n], with [MASK] and random tokens in their places.
        positions: int32 [p], the places that are asked for.
        targets: int32 [p], the true ids there.
        parts: int8 [p], what stands there: numbers of PARTS.
    """

    sentence: int
    input_ids: Int32s
    positions: Int32s
    targets: Int32s
    parts: Int8s


@dataclass(frozen=True)
class Masking:
    """How sentences are masked.

    Protocols (Devlin et al. 2019 for the first, Salazar et al. 2020 for the last):
        bert: 15 % of the tokens are asked for; 80 % of these become [MASK], 10 % any token of the
            vocabulary, 10 % stay.
        original: as the original project had it: bert, with unknown tokens asked for too.
        mask: the tokens of bert, all of them become [MASK].
        pseudo: every token is asked for, in a copy of the sentence where it alone is [MASK].

    Attributes:
        protocol: one of PROTOCOLS.
        seed: 0 to 2**64 - 1.
        mask_id: the id of [MASK].
        is_askable: bool [vocabulary]; false for [CLS], [SEP], [PAD], [MASK] and, but in the
            original's protocol, the unknown token.
    """

    protocol: str
    seed: int
    mask_id: int
    is_askable: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, properties: Mapping[str, Any], protocol: str, seed: int) -> Masking:
        """For the vocabulary of a model, given by its `info`."""
        names = ["cls_id", "sep_id", "pad_id", "mask_id"]
        if protocol != "original":
            names.append("unk_id")
        is_askable = np.ones(properties["n_tokens"], np.bool_)
        is_askable[[properties[name] for name in names if properties[name] >= 0]] = False
        return cls(protocol, seed, properties["mask_id"], is_askable)

    def queries(self, sentence: int, ids: Int32s) -> Iterator[Query]:
        """Yields what is asked of the sentence with these ids, int32 [n]."""
        if self.protocol == "pseudo":
            for position in np.flatnonzero(self.is_askable[ids]):
                yield self._query(sentence, ids, np.full(1, position, np.int32), _ONE_MASK)
            return
        choice, part, token = _draws(self.seed, ids)
        positions = np.flatnonzero((choice < CHOSEN_SHARE) & self.is_askable[ids])
        parts = np.searchsorted(_BERT_SHARES, part[positions], side="right").astype(np.int8)
        if self.protocol == "mask":
            parts[:] = MASKED
        random_ids = (token[positions] * len(self.is_askable)).astype(np.int32)
        yield self._query(sentence, ids, positions.astype(np.int32), parts, random_ids)

    def _query(
        self,
        sentence: int,
        ids: Int32s,
        positions: Int32s,
        parts: Int8s,
        random_ids: Int32s | None = None,
    ) -> Query:
        targets = ids[positions]
        shown = np.where(parts == MASKED, np.int32(self.mask_id), targets)
        if random_ids is not None:
            shown = np.where(parts == RANDOM, random_ids, shown)
        input_ids = ids.copy()
        input_ids[positions] = shown
        return Query(sentence, input_ids, positions, targets, parts)


def _draws(seed: int, ids: Int32s) -> npt.NDArray[np.float64]:
    """Three uniform numbers in [0, 1) for each token: float64 [3, n]."""
    source = seed.to_bytes(8, "little") + ids.astype("<i4").tobytes()
    octets = hashlib.shake_128(source).digest(3 * 8 * len(ids))
    # 53 bits are what a float64 holds.
    draws: npt.NDArray[np.float64] = (np.frombuffer(octets, "<u8") >> np.uint64(11)) * 2.0**-53
    return draws.reshape(3, len(ids))
