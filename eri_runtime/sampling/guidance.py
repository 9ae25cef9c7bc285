"""Guidance as a matrix: F[b] = Σ_k mix[k, b]·F[k, b] over K conditions, for B images.

Row 0 of the matrix belongs to the negative condition, the other rows to the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eri_runtime.checks import float32, not_negative, real
from eri_runtime.errors import EriError, UsageError, short

Array = NDArray[np.float32]
NO_EMBEDDING = -1.0  # as a graph's `guidance` input: omit the guidance embedding


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """The guidance of a call with B images.

    Attributes:
        scale: CFG scale g per image, (B,) float32.
        embedded: Guidance input of a denoiser that embeds it, (B,) float32.
        rescale: phi of guidance rescale (Lin et al. 2023, arXiv 2305.08891, eq. 16).
        interval: CFG acts at noise levels above the first and up to the second number. Levels are
            sigma/alpha, or sigma for flow models (`Clock.tau`).
    """

    scale: Array
    embedded: Array
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, inf)

    def acts_at(self, level: float) -> bool:
        """Returns whether CFG acts at a noise level.

        Kynkäänniemi et al. 2024 (arXiv 2404.07724), eq. 5.
        """
        low, high = self.interval
        return low < level <= high


def cfg_mix(scale: ArrayLike, weights: ArrayLike) -> Array:
    """Returns the matrix of classifier-free guidance, (1 + P, B) float32, for P prompts per image.

    F = F_neg + g·Σ_p w_p·(F_p − F_neg) (Ho & Salimans 2022, arXiv 2207.12598, with g = 1 + w; Liu
    et al. 2022, arXiv 2206.01714, eq. 11). `scale` is g, one number or (B,): 1 or less means no
    guidance, as in diffusers. `weights` is w, (P, B).
    """
    positive = np.maximum(np.asarray(scale, np.float64), 1.0) * np.asarray(weights, np.float64)
    negative = 1 - positive.sum(axis=0, keepdims=True)
    return np.concatenate([negative, positive]).astype(np.float32)


def mix_predictions(mix: Array, predictions: Array) -> Array:
    """Mixes the predictions (K·B, …) of K conditions to guided predictions (B, …).

    `predictions` holds the B images of the first condition, then those of the second, and so on.
    """
    conditions, batch = mix.shape
    stacked = predictions.reshape(conditions, batch, *predictions.shape[1:])
    weights = mix.reshape(conditions, batch, *(1,) * (predictions.ndim - 1))
    mixed: Array = np.add.reduce(weights * stacked, axis=0)
    return mixed


def rescale_guided(guided: Array, plain: Array, phi: float) -> Array:
    """Rescales guided predictions (B, …), image by image, against overexposure.

    Returns phi·guided·std(plain)/std(guided) + (1 − phi)·guided (Lin et al. 2023, arXiv 2305.08891,
    eq. 15 and 16), where `plain` (B, …) is the prediction without guidance.
    """
    axes = tuple(range(1, guided.ndim))
    plain_std, guided_std = (value.std(axis=axes, keepdims=True) for value in (plain, guided))
    ones = np.ones_like(plain_std)
    ratio: Array = np.divide(plain_std, guided_std, out=ones, where=guided_std > 0)
    rescaled: Array = guided * (phi * ratio + (1 - phi)).astype(np.float32)
    return rescaled


def per_image(name: str, value: ArrayLike, count: int, prompts: int = 1) -> Array:
    """Expands one number, or one per prompt or image, to one per image, (count,) float32.

    Raises `UsageError` for another count, and for a number that is negative or not finite.
    """
    try:
        with np.errstate(over="ignore"):  # Inf is refused below
            numbers = float32(name, value)
    except EriError:
        numbers = np.array([np.nan], np.float32)
    if numbers.shape == (prompts,):
        numbers = numbers.repeat(count // prompts)
    valid = (np.isfinite(numbers) & (numbers >= 0)).all()
    if numbers.shape not in [(), (1,), (count,)] or not valid:
        many = f", or {count} of them" if count > 1 else ""
        raise UsageError(name, got=short(value), expected=f"a finite number, 0 or more{many}")
    return np.broadcast_to(numbers, (count,))


def check_interval(interval: Sequence[float] | None) -> tuple[float, float]:
    """Returns the noise levels between which CFG acts; None stands for all levels.

    Raises `UsageError` unless it is two numbers, the first 0 or more, the second larger.
    """
    if interval is None:
        return 0.0, inf
    if not isinstance(interval, Sequence) or len(interval) != 2:
        raise UsageError("guidance_interval", got=short(interval), expected="two noise levels")
    low = not_negative("guidance_interval", interval[0])
    above = f"two noise levels, the second above {low:g}"
    return low, real("guidance_interval", interval[1], above, lambda high: high > low)


def check_fraction(name: str, value: object) -> float:
    """Returns a number from 0 to 1 as a float; raises `UsageError` for anything else."""
    return real(name, value, "a number from 0 to 1", lambda number: 0 <= number <= 1)
