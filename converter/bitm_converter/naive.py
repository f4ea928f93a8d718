"""Naive binarization: float matrices become signs as they are, without training for it.

The experiment that the field starts from: how much of a float BERT is left when parts of it are
replaced by {-1, +1}, by {0, 1}, or by signs times the mean magnitude (XNOR-Net, Rastegari et al.
2016). Little is, which is why models are trained to be binary. sgn(0) = +1 here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bitm_formats import Layout

from .binarize import Floats, mean
from .packing import Codes

Scheme = Literal["sign", "zero-one", "xnor"]
Scales = Literal["tensor", "row", "head"]

_PER_HEAD = frozenset({"query", "key", "value"})
_ATTENTION = _PER_HEAD | {"attention_output"}
_FEED_FORWARD = frozenset({"intermediate", "output"})
_TABLES = frozenset({"embeddings.word", "embeddings.token_type"})
_HEAD = frozenset({"pooler", "mlm.transform", "mlm.decoder", "next_sentence", "classifier"})

# Whose matrices each component names; biases, norms and positions are in none.
COMPONENTS = {
    "all": _ATTENTION | _FEED_FORWARD | _TABLES | _HEAD,
    "layers": _ATTENTION | _FEED_FORWARD,
    "layers-except-attention": _FEED_FORWARD,
    "layers-except-ffn": _ATTENTION,
    "embeddings": _TABLES,
    "head": _HEAD,
}
_MATRIX = re.compile(r"(?:layers\.\d+\.)?(.+)\.weight")


def _place(slot: str) -> str | None:
    """`query` of `layers.3.query.weight`; None for what is no matrix of weights."""
    match = _MATRIX.fullmatch(slot)
    return match[1] if match else None


@dataclass(frozen=True)
class Binarization:
    """What the user wants binarized, and how.

    `scales` are those of the scheme xnor in linears: `head` is one for each head's rows of query,
    key and value, and one for every other matrix. Tables take `table_layout` instead: TENSOR, ROW
    or COLUMN.
    """

    scheme: Scheme
    scales: Scales = "row"
    components: tuple[str, ...] = ("layers",)
    table_layout: Layout = Layout.COLUMN

    def covers(self, slot: str, component: str | None = None) -> bool:
        """Whether a component, by default any of those chosen, names the matrix in a slot."""
        chosen = self.components if component is None else (component,)
        return any(_place(slot) in COMPONENTS[name] for name in chosen)

    def binarize(self, slot: str, weights: Floats, n_heads: int) -> Codes:
        """What takes the place of the float matrix [rows, columns] in a slot."""
        if self.scheme == "sign":
            return signs(weights, Layout.TENSOR, np.ones(1, np.float32))
        if self.scheme == "zero-one":
            half = np.full(1, 0.5, np.float32)
            return signs(weights, Layout.TENSOR, half, half)
        place = _place(slot)
        if place in _TABLES:
            return with_mean_magnitudes(weights, self.table_layout)
        if self.scales == "row":
            return with_mean_magnitudes(weights, Layout.ROW)
        n_groups = n_heads if self.scales == "head" and place in _PER_HEAD else 1
        return with_mean_magnitudes(weights, Layout.ROW_GROUP, n_groups)

    @property
    def scales_tables(self) -> bool:
        """Whether `table_layout` says anything."""
        return self.scheme == "xnor" and any(COMPONENTS[name] & _TABLES for name in self.components)

    @property
    def name(self) -> str:
        """Scheme, scales and components, as in the metadata `source.binarized`."""
        words: list[str] = [self.scheme]
        if self.scheme == "xnor":
            words.append(self.scales)
        if self.scales_tables:
            words.append(f"(tables {self.table_layout.name.lower()})")
        return f"{' '.join(words)}: {', '.join(self.components)}"


def signs(weights: Floats, layout: Layout, scales: Floats, offsets: Floats | None = None) -> Codes:
    """scale sgn(W) + offset, with sgn(0) = sgn(-0) = 1."""
    codes = np.where(weights >= 0, np.int8(1), np.int8(-1))
    return Codes(codes, scales, layout, "float", offsets)


def with_mean_magnitudes(weights: Floats, layout: Layout, n_groups: int = 1) -> Codes:
    """m sgn(W), m the mean of abs(W) per tensor, row, column or each of n_groups of equal rows.

    Of all scales m is that with the least sum of squared errors (Rastegari et al. 2016). A row
    group of one row, or of all, makes the layout ROW or TENSOR, as the format wants it.
    """
    magnitudes = np.abs(weights)
    if layout == Layout.COLUMN:
        return signs(weights, layout, mean(magnitudes.T, Layout.ROW))
    if layout == Layout.ROW_GROUP:
        layout = {1: Layout.TENSOR, len(weights): Layout.ROW}.get(n_groups, layout)
        magnitudes = magnitudes.reshape(n_groups, -1)
    means = mean(magnitudes, Layout.TENSOR if layout == Layout.TENSOR else Layout.ROW)
    return signs(weights, layout, means)
