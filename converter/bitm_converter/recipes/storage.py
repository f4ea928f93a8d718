"""How matrices of floats are kept: for each slot what the user chose, and what else it would cost.

`auto` keeps every value, in the smaller format that does. Beside a 1-bit encoder of a plain BERT
it means fp16, and 8-bit matrices beside 8-bit or 1-bit words. In models whose encoder is float,
rounding the embeddings alone to fp16 was measured to move hidden states by 0.001 to 0.002 and
logits by up to 0.005; where activations are quantized, it may flip a code.

Positions and token types are few, so they are kept one step finer than the words: fp16 beside
8-bit words, 8-bit beside 1-bit words. Cross-entropy of a trained 1-bit masked LM (16,384 words of
512, WikiText-2): 3.234 with fp16 words, 3.235 with 8-bit ones, 5.90 with 1-bit ones by row, 5.17
by column, 5.25 by tensor; 8-bit positions beside 1-bit words cost 0.004 of that, and save 0.4 MB of
16 in BERT-base.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Union

from bitm_converter.binarize import Floats
from bitm_converter.naive import with_mean_magnitudes
from bitm_converter.packing import (
    Coded,
    FloatFormat,
    Int8,
    Packed,
    is_two_valued,
    pack_floats,
    pack_instead,
)
from bitm_formats import Layout, Slot, SlotKind

from .base import Alternative, Options
from .skeleton import DECODER_WEIGHT

WORD_TABLES = ("embeddings.word.weight", "embeddings.word.second.weight", DECODER_WEIGHT)
TABLES = (*WORD_TABLES, "embeddings.position.weight", "embeddings.token_type.weight")

Format = Union[FloatFormat, Literal["int8", "bit1"]]

_TABLE_LAYOUTS = (Layout.ROW, Layout.COLUMN, Layout.TENSOR)
_ONE_STEP_FINER: dict[Format, Format] = {"int8": "fp16", "bit1": "int8"}


@dataclass(frozen=True)
class Storage:
    """The formats of float matrices; `table_layout` is that of the scales of 1-bit tables."""

    words: Format
    matrices: Format
    table_layout: Layout

    @classmethod
    def chosen(cls, options: Options, may_round: bool) -> Storage:
        """`may_round` tells whether `auto` need not keep every value."""
        words: Format = "fp16" if may_round else "exact"
        if options.embeddings != "auto":
            words = options.embeddings
        matrices: Format = "exact"
        if options.matrices != "auto":
            matrices = options.matrices
        elif may_round and words != "fp32":
            matrices = "int8" if words in _ONE_STEP_FINER else "fp16"
        return cls(words, matrices, options.table_layout)

    @property
    def name_of_words(self) -> str:
        """The metadata `source.embeddings`: nothing for floats, which explain themselves."""
        if self.words == "bit1":
            return f"bit1 {self.table_layout.name.lower()}"
        return "int8 row" if self.words == "int8" else ""

    def format_of(self, slot: str) -> Format:
        """The format of the matrix in a slot, if it is of floats that are not two-valued."""
        if slot in WORD_TABLES:
            return self.words
        return _ONE_STEP_FINER.get(self.words, self.words) if slot in TABLES else self.matrices

    def instead(self, slot: Slot, floats: Floats) -> Coded | Floats:
        """What the model computes with in place of a slot's floats; most often they themselves."""
        form = self.format_of(slot.name)
        if slot.kind != SlotKind.MATRIX or form not in _ONE_STEP_FINER or is_two_valued(floats):
            return floats
        if form == "int8":
            return Int8.nearest(floats)
        return with_mean_magnitudes(floats, self.table_layout)


def alternatives(slot: str, floats: Floats, stored: Packed) -> Iterator[Alternative]:
    """Every format for a word table of floats; `stored` is the one that it got."""
    candidates = [pack_floats(floats, "fp32"), pack_floats(floats, "fp16")]
    candidates.append(pack_instead(floats, Int8.nearest(floats)))
    for layout in _TABLE_LAYOUTS:
        candidates.append(pack_instead(floats, with_mean_magnitudes(floats, layout)))
    # Floats too large for fp16 are stored as fp32 twice.
    for packed in {packed.stored: packed for packed in candidates}.values():
        is_chosen = (packed.stored, packed.loss) == (stored.stored, stored.loss)
        yield Alternative(slot, packed.stored, packed.tensor.nbytes, packed.loss, is_chosen)
