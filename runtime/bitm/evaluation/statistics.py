"""Measurements with their confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats64 = npt.NDArray[np.float64]

_NORMAL_QUANTILE = 1.959963984540054  # 95 % of a normal distribution lie within so many deviations


@dataclass(frozen=True)
class Estimate:
    """A value, and half of the width of its 95 % confidence interval (NaN where unknown)."""

    value: float
    half_width: float

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.value - self.half_width

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.value + self.half_width


def ratio(numerators: npt.ArrayLike, denominators: npt.ArrayLike) -> Estimate:
    """Estimates sum(numerators) / sum(denominators) from one pair for each sentence, [n].

    Tokens of a sentence depend on each other, sentences hardly do: the sentence is what is sampled.
    The variance is that of the ratio estimator, linearized (Cochran, Sampling Techniques, 1977,
    section 2.11): n / (n - 1) sum (a_i - r b_i)^2 / (sum b_i)^2. A mean over masks, an accuracy
    and F1 = 2 TP / (found + true) are all such ratios.
    """
    a, b = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    total = float(b.sum())
    if total == 0:
        return Estimate(math.nan, math.nan)
    value = float(a.sum()) / total
    n = len(a)
    if n < 2:
        return Estimate(value, math.nan)
    variance = n / (n - 1) * float(np.square(a - value * b).sum()) / total**2
    return Estimate(value, _NORMAL_QUANTILE * math.sqrt(variance))


def sums_by(groups: npt.NDArray[np.int64], values: npt.ArrayLike, n: int) -> Floats64:
    """Sums values [m] over each of n groups: float64 [n]."""
    return np.asarray(np.bincount(groups, np.asarray(values, np.float64), n), np.float64)
