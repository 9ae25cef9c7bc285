"""Guidance as a matrix: F = Σ_k mix[k, b]·F[k, b] over K conditions and B images.

Row 0 is the negative condition; the others are the texts of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eri_runtime.checks import not_negative, real
from eri_runtime.errors import UsageError, short

Array = NDArray[np.float32]
NO_EMBEDDING = -1.0  # what a graph takes for "leave the guidance embedding out"


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How a call is guided.

    `scale` (B,) is CFG's g, `embedded` (B,) what a denoiser that embeds its guidance is told.
    `rescale` is Lin et al.'s phi. CFG acts at levels (in k-diffusion's unit) above the first and up
    to the second of `interval`.
    """

    scale: Array
    embedded: Array
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, inf)

    def acts_at(self, level: float) -> bool:
        """Whether CFG is on (Kynkäänniemi et al. 2024, arXiv 2404.07724, eq. 5)."""
        low, high = self.interval
        return low < level <= high


def cfg_mix(scale: ArrayLike, weights: ArrayLike) -> Array:
    """(1 + P, B) weights of the negative condition and P others, for `weights` (P, B).

    F_neg + g·Σ_p w_p·(F_p − F_neg) (Ho & Salimans 2022, arXiv 2207.12598, with g = 1 + w; Liu et
    al. 2022, arXiv 2206.01714, eq. 11). `scale` g is one number or (B,); 1 or less is no guidance,
    as in diffusers.
    """
    positive = np.maximum(np.asarray(scale, np.float64), 1.0) * np.asarray(weights, np.float64)
    negative = 1 - positive.sum(axis=0, keepdims=True)
    return np.concatenate([negative, positive]).astype(np.float32)


def mix_predictions(mix: Array, predictions: Array) -> Array:
    """(K·B, …) predictions, stacked by condition, to the guided (B, …)."""
    conditions, batch = mix.shape
    stacked = predictions.reshape(conditions, batch, *predictions.shape[1:])
    weights = mix.reshape(conditions, batch, *(1,) * (predictions.ndim - 1))
    mixed: Array = np.sum(weights * stacked, axis=0)
    return mixed


def rescale_guided(guided: Array, plain: Array, phi: float) -> Array:
    """phi·guided·std(plain)/std(guided) + (1 − phi)·guided, an image at a time.

    Lin et al. 2023 (arXiv 2305.08891), eq. 15 and 16; `plain` is the prediction without guidance.
    """
    axes = tuple(range(1, guided.ndim))
    wanted, found = (value.std(axis=axes, keepdims=True) for value in (plain, guided))
    ratio = np.divide(wanted, found, out=np.ones_like(wanted), where=found > 0)
    return guided * (phi * ratio + (1 - phi)).astype(np.float32)


def per_image(name: str, value: ArrayLike, count: int, prompts: int = 1) -> Array:
    """One number for all, a prompt or an image as (count,) float32.

    Raises `UsageError` for another number of them, and for one that is negative or not finite.
    """
    try:
        given = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        given = np.array([np.nan], np.float32)
    if given.shape == (prompts,):
        given = given.repeat(count // prompts)
    if given.shape not in [(), (1,), (count,)] or not (np.isfinite(given) & (given >= 0)).all():
        many = f", or {count} of them" if count > 1 else ""
        raise UsageError(name, got=short(value), expected=f"a finite number, 0 or more{many}")
    return np.broadcast_to(given, (count,))


def check_interval(interval: Sequence[float] | None) -> tuple[float, float]:
    """The levels between which CFG acts, all of them for None; raises `UsageError`."""
    if interval is None:
        return 0.0, inf
    if not isinstance(interval, Sequence) or len(interval) != 2:
        raise UsageError("guidance_interval", got=short(interval), expected="two noise levels")
    low = not_negative("guidance_interval", interval[0])
    above = f"two noise levels, the second above {low:g}"
    return low, real("guidance_interval", interval[1], above, lambda high: high > low)


def check_share(name: str, value: object) -> float:
    """`value` if it is a number from 0 to 1, else a `UsageError`."""
    return real(name, value, "a number from 0 to 1", lambda share: 0 <= share <= 1)
