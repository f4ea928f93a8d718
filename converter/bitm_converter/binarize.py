"""From the latent weights that a binarized network trains to the few values that it computes with.

Every function takes a finite float32 matrix [rows, columns]. sgn(0) = 0, as torch.sign has it.
Means are summed in float64 and rounded to float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitm_formats import Layout

from .packing import Codes

Floats = npt.NDArray[np.float32]

_PER = {Layout.TENSOR: "tensor", Layout.ROW: "row"}


def signs(weights: Floats, layout: Layout, centre: Layout = Layout.NONE) -> Codes:
    """m sgn(W - c): m is the mean of abs(W), c that of W, each per tensor or row.

    `layout` says which for m, `centre` for c, where Layout.NONE is c = 0. BiBERT takes rows for
    both; BiT and BiPFT take c of the tensor and m of the tensor or, in embeddings, of the row;
    BinaryBERT has no c.
    """
    c, about = np.zeros((1, 1), np.float32), ""
    if centre != Layout.NONE:
        c, about = mean(weights, centre)[:, None], f" about the mean per {_PER[centre]}"
    # Comparing, unlike a difference, cannot round.
    codes = (weights > c).astype(np.int8) - (weights < c)
    found = f"signs{about}, mean magnitude per {_PER[layout]}"
    return Codes(codes, mean(np.abs(weights), layout), layout, found)


def ternary(weights: Floats, layout: Layout) -> Codes:
    """Ternary weight networks: sgn(W) where abs(W) > t, else 0, times the mean of abs(W) there.

    t = 0.7 mean of abs(W); `layout` is TENSOR or ROW for t and the scale alike. Where nothing is
    above t, all weights are 0, the scale is 0 (the formula gives 0 / 0).
    """
    magnitudes = np.abs(weights)
    kept = magnitudes > np.float32(0.7) * mean(magnitudes, layout)[:, None]
    axis = None if layout == Layout.TENSOR else 1
    total = np.where(kept, magnitudes, 0).sum(axis=axis, dtype=np.float64)
    scales = np.atleast_1d(total / np.maximum(kept.sum(axis=axis), 1)).astype(np.float32)
    codes = np.sign(weights).astype(np.int8) * kept
    return Codes(codes, scales, layout, f"ternary (TWN) per {_PER[layout]}")


def rounded(weights: Floats) -> Codes:
    """BitNet b1.58: m clamp(round(W / m), -1, 1) with m the mean of abs(W), at least 1e-5."""
    scale = np.float32(1) / np.maximum(mean(np.abs(weights), Layout.TENSOR), np.float32(1e-5))
    codes = np.clip(np.round(weights * scale), -1, 1).astype(np.int8)
    found = "rounded to -1, 0, 1, mean magnitude per tensor"
    return Codes(codes, np.float32(1) / scale, Layout.TENSOR, found)


def mean(weights: Floats, layout: Layout) -> Floats:
    """The mean per tensor [1] or per row [rows]."""
    axis = None if layout == Layout.TENSOR else 1
    return np.atleast_1d(weights.mean(axis=axis, dtype=np.float64)).astype(np.float32)
