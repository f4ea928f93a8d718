"""Fits the polynomials of native/src/kernels/canonical.h.

Coefficients are found by weighted least squares with the weights moved towards the largest error
(Lawson's method), then rounded to float32.  `python native/tools/fit_functions.py` prints them as C
macros.  Needs numpy and mpmath.
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp
import numpy as np

mp.mp.dps = 40


def fit(
    function: Callable[[float], mp.mpf],
    low: float,
    high: float,
    degree: int,
    weight: Callable[[float], float],
) -> np.ndarray:
    """Coefficients c[0..degree] of the polynomial nearest to `function` on [low, high].

    `weight(x)` multiplies the error at x; the greatest weighted error is made small.
    """
    nodes = (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(600) + 0.5) / 600)
    target = np.array([float(function(x)) for x in nodes])
    weights = np.array([weight(x) for x in nodes])
    lawson = np.ones_like(weights)
    # Powers of the variable moved to [-1, 1] keep the system well conditioned.
    scaled = (nodes - (low + high) / 2) * 2 / (high - low)
    powers = np.polynomial.chebyshev.chebvander(scaled, degree)
    for _ in range(200):
        factor = np.sqrt(lawson) * weights
        solution = np.linalg.lstsq(powers * factor[:, None], target * factor, rcond=None)[0]
        error = np.abs((powers @ solution - target) * weights).astype(float)
        lawson = lawson * error
        lawson /= lawson.mean()
    series = np.polynomial.Chebyshev(solution, domain=[low, high])
    return np.asarray(series.convert(kind=np.polynomial.Polynomial).coef)


def show(name: str, coefficients: np.ndarray) -> None:
    for power, value in enumerate(coefficients):
        digits = f"{np.float32(value):.9g}"
        print(f"#define {name}_{power} {digits if '.' in digits else digits + '.0'}F")


def main() -> None:
    half_ln2 = 0.5 * float(mp.log(2)) * 1.0001
    # exp(r) = 1 + r + r^2 P(r)
    show(
        "BITM_EXP",
        fit(
            lambda r: (mp.e**r - 1 - r) / (mp.mpf(r) ** 2) if r else mp.mpf(1) / 2,
            -half_ln2,
            half_ln2,
            4,
            lambda r: r * r,
        ),
    )
    # log2(erfc(x / sqrt(2))) = x P(x) for 0 <= x < 5.5425
    show(
        "BITM_GELU",
        fit(
            lambda x: mp.log(mp.erfc(x / mp.sqrt(2)), 2) / x,
            1e-9,
            5.5425,
            6,
            lambda x: float(x * mp.erfc(x / mp.sqrt(2))),
        ),
    )
    # 2^r / 2 = 1 / 2 + r P(r)
    exp2 = fit(
        lambda r: (mp.mpf(2) ** r - 1) / (2 * r) if r else mp.log(2) / 2,
        -0.5,
        0.5,
        4,
        lambda r: abs(r) * 2.0**-r,
    )
    show("BITM_HALF_EXP2", np.concatenate([[0.5], exp2]))
    # 255 * 2^r = 255 + r P(r)
    probability = fit(
        lambda r: 255 * (mp.mpf(2) ** r - 1) / r if r else 255 * mp.log(2),
        -0.5,
        0.5,
        2,
        lambda r: abs(r) * 2.0**-r,
    )
    show("BITM_PROBABILITY", np.concatenate([[255], probability]))
    # tanh(x) = x + x^3 P(x^2) for |x| < 0.625
    show(
        "BITM_TANH",
        fit(
            lambda s: (mp.tanh(mp.sqrt(s)) / mp.sqrt(s) - 1) / s if s else -mp.mpf(1) / 3,
            0.0,
            0.625**2,
            4,
            lambda s: s,
        ),
    )


if __name__ == "__main__":
    main()
