"""Noise levels from the first to the last one: how N of them are spaced.

A level is a solver's time (`schedule.Clock.tau`): sigma/alpha for `vp`, sigma for `flow`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from math import gamma
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import UnknownNameError, UsageError, short

Float64 = NDArray[np.float64]
SigmaName = Literal["default", "karras", "exponential", "beta", "simple"]
# what a listed level may be, and how near to the one before: the loop's state is float32
SMALLEST, LARGEST, NEAREST = 1e-6, 1e6, 1e-6
Spacer = Callable[[float, float, int, Float64], Float64]


def karras(first: float, last: float, count: int, _training: Float64, rho: float = 7.0) -> Float64:
    """Karras et al. 2022 (arXiv 2206.00364), eq. 5: linear in level^(1/rho)."""
    low, high = last ** (1 / rho), first ** (1 / rho)
    return (high + np.linspace(0, 1, count) * (low - high)) ** rho


def exponential(first: float, last: float, count: int, _training: Float64) -> Float64:
    """Linear in the logarithm of the level."""
    return np.exp(np.linspace(np.log(first), np.log(last), count))


def beta(first: float, last: float, count: int, _training: Float64, shape: float = 0.6) -> Float64:
    """Lee et al. 2024 (arXiv 2407.12173): quantiles of Beta(0.6, 0.6), dense at both ends."""
    quantiles = [beta_quantile(1 - p, shape) for p in np.linspace(0, 1, count)]
    return last + np.array(quantiles) * (first - last)


def simple(_first: float, _last: float, count: int, training: Float64) -> Float64:
    """Every (T/N)-th training step from the noisiest on, rounded down, as ComfyUI's `simple`."""
    skipped = (np.arange(count) * (len(training) / count)).astype(int)
    return training[::-1][skipped]


SPACINGS: Mapping[str, Spacer] = {
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
    "simple": simple,
}


def spaced_levels(name: str, first: float, last: float, count: int, training: Float64) -> Float64:
    """(N,) float64 levels, falling; raises `UnknownNameError` for a name that is none."""
    if name not in SPACINGS:
        expected = f"one of default, {', '.join(SPACINGS)}, or a list of levels"
        raise UnknownNameError("sigmas", got=repr(name), expected=expected)
    return SPACINGS[name](first, last, count, training)


def listed_levels(sigmas: Sequence[float], count: int, end: float, most: float) -> Float64:
    """The caller's (N,) levels, falling from at most `most` and above `end`; a last 0 may follow.

    Raises `UsageError` for anything else, and for levels that float32 cannot tell apart.
    """
    given = list(sigmas) if isinstance(sigmas, Iterable) else []
    numbers = (int, float, np.integer, np.floating)
    levels = [float(level) for level in given if isinstance(level, numbers) and abs(level) <= most]
    usable = len(levels) == len(given)
    if len(levels) == count + 1 and levels[-1] == 0:
        levels.pop()
    least = max(end, SMALLEST)
    falling = all(a * (1 - NEAREST) > b for a, b in pairwise(levels))
    if not usable or len(levels) != count or not falling or levels[-1] <= least:
        each = "each less than the one before"
        expected = f"{count} numbers, {each}, above {least:.3g} and at most {most:g}"
        fix = "pass as many levels as num_inference_steps"
        raise UsageError("sigmas", got=short(sigmas), expected=expected, fix=fix)
    return np.array(levels)


def beta_quantile(p: float, shape: float) -> float:
    """x with I_x(shape, shape) = p, the regularised incomplete beta function, by bisection."""
    if p > 0.5:
        return 1 - beta_quantile(1 - p, shape)
    low, high = 0.0, 0.5
    for _ in range(80):
        middle = (low + high) / 2
        if _incomplete_beta(middle, shape) < p:
            low = middle
        else:
            high = middle
    return high if p > 0 else 0.0


def _incomplete_beta(x: float, shape: float) -> float:
    """I_x(a, a) for x ≤ 1/2: x^a/B · Σ (1−a)_n/n! · x^n/(a+n) (NIST DLMF 8.17.7)."""
    total, term = 0.0, 1.0
    for n in range(64):
        total += term / (shape + n)
        term *= (n + 1 - shape) / (n + 1) * x
    return float(x**shape * total * gamma(2 * shape) / gamma(shape) ** 2)
