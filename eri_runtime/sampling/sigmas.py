"""Spacings of N noise levels between the first and the last one.

A level is `schedule.Clock.tau`: sigma/alpha for `vp`, sigma for `flow`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import gamma
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import items
from eri_runtime.errors import UnknownNameError, UsageError, short

Float64 = NDArray[np.float64]
SigmaName = Literal["default", "karras", "exponential", "beta", "simple"]
# limits of a listed level, and its least relative distance to the next: latents are float32
SMALLEST, LARGEST, NEAREST = 1e-6, 1e6, 1e-6
# (first level, last level, N, levels of the training timesteps) -> N levels
Spacer = Callable[[float, float, int, Float64], Float64]


def karras(first: float, last: float, count: int, _training: Float64, rho: float = 7.0) -> Float64:
    """Returns levels linear in level^(1/rho) (Karras et al. 2022, arXiv 2206.00364, eq. 5)."""
    low, high = last ** (1 / rho), first ** (1 / rho)
    levels: Float64 = (high + np.linspace(0, 1, count) * (low - high)) ** rho
    return levels


def exponential(first: float, last: float, count: int, _training: Float64) -> Float64:
    """Returns levels linear in log level."""
    return np.exp(np.linspace(np.log(first), np.log(last), count))


def beta(first: float, last: float, count: int, _training: Float64, shape: float = 0.6) -> Float64:
    """Returns levels at quantiles of Beta(0.6, 0.6), which are dense at both ends.

    Lee et al. 2024 (arXiv 2407.12173).
    """
    quantiles = [beta_quantile(1 - p, shape) for p in np.linspace(0, 1, count)]
    levels: Float64 = last + np.array(quantiles) * (first - last)
    return levels


def simple(_first: float, _last: float, count: int, training: Float64) -> Float64:
    """Returns every (T/N)-th training level from the noisiest on, as ComfyUI's `simple`."""
    indices = (np.arange(count) * (len(training) / count)).astype(int)
    levels: Float64 = training[::-1][indices]
    return levels


SPACINGS: Mapping[str, Spacer] = {
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
    "simple": simple,
}


def spaced_levels(name: str, first: float, last: float, count: int, training: Float64) -> Float64:
    """Returns N falling levels in a named spacing; raises `UnknownNameError` for other names."""
    if not isinstance(name, str) or name not in SPACINGS:
        expected = f"one of default, {', '.join(SPACINGS)}, or a list of levels"
        raise UnknownNameError("sigmas", got=short(name), expected=expected)
    return SPACINGS[name](first, last, count, training)


def listed_levels(sigmas: Sequence[float], count: int, end: float, most: float) -> Float64:
    """Checks the caller's N levels, (N,) float64; drops a final 0, as in k-diffusion's lists.

    Raises `UsageError` unless there are N levels that fall from at most `most` and stay above
    `end`, far enough apart for float32.
    """
    listed: list[float] = items("sigmas", sigmas, "a name, or a list of levels")
    numbers = (int, float, np.integer, np.floating)
    levels = [float(level) for level in listed if isinstance(level, numbers) and abs(level) <= most]
    usable = len(levels) == len(listed)
    if len(levels) == count + 1 and levels[-1] == 0:
        levels.pop()
    least = max(end, SMALLEST)
    falling = all(a * (1 - NEAREST) > b for a, b in pairwise(levels))
    if not usable or len(levels) != count or not falling or levels[-1] <= least:
        order = "each less than the one before"
        expected = f"{count} numbers, {order}, above {least:.3g} and at most {most:g}"
        fix = "pass as many levels as num_inference_steps"
        raise UsageError("sigmas", got=short(sigmas), expected=expected, fix=fix)
    return np.array(levels)


def beta_quantile(p: float, shape: float) -> float:
    """Returns x with I_x(shape, shape) = p, by bisection.

    I is the regularised incomplete beta function.
    """
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
    """Returns I_x(a, a) for a = `shape`, x ≤ 1/2: x^a/B · Σ (1−a)_n/n! · x^n/(a+n).

    NIST DLMF 8.17.7.
    """
    total, term = 0.0, 1.0
    for n in range(64):
        total += term / (shape + n)
        term *= (n + 1 - shape) / (n + 1) * x
    return float(x**shape * total * gamma(2 * shape) / gamma(shape) ** 2)
