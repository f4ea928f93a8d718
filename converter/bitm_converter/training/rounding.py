"""Codes of 8 bits, and the derivative that rounding is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """Gives `value` and passes its gradient to `x`, both of one shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value` exactly, with the derivative of `x`."""
    return _StraightThrough.apply(x, value.detach())


def byte_codes(x: Tensor, greatest: Tensor) -> tuple[Tensor, Tensor]:
    """Codes round(x 127 / m) of x, float32, and their steps m / 127, as by the runtime's
    quantize_i8; m is `greatest`, the largest magnitude of what shares a step.

    The codes have the derivative of x / step.
    """
    with torch.no_grad():
        factor = 127 / greatest
        factor = torch.where(factor.isfinite(), factor, 0)
    scaled = x * factor
    return straight_through(scaled, torch.round(scaled)), greatest / 127
