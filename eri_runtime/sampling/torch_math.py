"""log, sin and cos in float32, bit for bit as in torch's vectorised CPU kernel.

Moshier's Cephes polynomials (`logf`, `sinf`, `cosf`; 1992), restricted to the arguments of a
Box–Muller transform, with fused multiply-adds where the compiled kernel has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SQRT_HALF = np.float32(0.70710678)
LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
LN_2 = (np.float32(0.693359375), np.float32(-2.12194440e-4))  # sum to ln 2; the first has few bits
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
QUARTER_PI = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)  # sum to π/4
HALF, ONE = np.float32(0.5), np.float32(1)


def log(x: Floats) -> Floats:
    """Returns ln x for normal x > 0: x = 2^e·m, ln x = e·ln 2 + ln m with m in [sqrt ½, sqrt 2)."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < SQRT_HALF
    e = (exponent - small).astype(np.float32)
    m = np.where(small, mantissa + mantissa, mantissa) - ONE
    square = m * m
    y = _fma(_polynomial(LOG, m) * m, square, e * LN_2[1]) - HALF * square
    return _fma(e, LN_2[0], m + y)


def sin_cos(x: Floats) -> tuple[Floats, Floats]:
    """Returns sin x and cos x for 0 <= x < 8192: x = j·π/4 + r with j even and |r| <= π/4."""
    j = ((x * np.float32(4 / np.pi)).astype(np.int32) + 1) & ~1
    whole, r = j.astype(np.float32), x
    for part in QUARTER_PI:
        r = _fma(whole, np.float32(-part), r)
    square = r * r
    cos = _fma(_polynomial(COS, square) * square, square, -(HALF * square)) + ONE
    sin = _fma(_polynomial(SIN, square) * square, r, r)
    odd = (j & 2) != 0
    sines, cosines = np.where(odd, cos, sin), np.where(odd, sin, cos)
    return np.where(j & 4, -sines, sines), np.where((j + 2) & 4, -cosines, cosines)


def _polynomial(coefficients: Sequence[float], x: Floats) -> Floats:
    """Evaluates a polynomial by Horner's scheme; coefficients from the highest power down."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fma(value, x, np.float32(coefficient))
    return value


def _fma(a: Floats, b: Floats | np.float32, c: Floats | np.float32) -> Floats:
    """Returns a·b + c with an exact product, in float64.

    The sum is rounded to float64 and then to float32, which rarely differs from a single rounding.
    """
    return (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32)
