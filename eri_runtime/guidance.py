"""Guidance as a matrix: F = Σ_k mix[k, b]·F[k, b] over K conditions and B images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eri_runtime.errors import UsageError


def cfg_mix(scale: ArrayLike, batch: int) -> NDArray[np.float32]:
    """(2, B) weights of (negative, positive): F_neg + g·(F_pos − F_neg) = (1 − g, g).

    Ho & Salimans 2022 (arXiv 2207.12598), with g = 1 + w. `scale` is one number or (B,).
    """
    g = np.broadcast_to(np.asarray(scale, dtype=np.float32), (batch,))
    return np.stack([1 - g, g])


def no_mix(batch: int) -> NDArray[np.float32]:
    """(1, B) of ones: one condition, no guidance."""
    return np.ones((1, batch), dtype=np.float32)


def mix_predictions(
    mix: NDArray[np.float32], predictions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(K·B, …) predictions, stacked by condition, to the guided (B, …)."""
    conditions, batch = mix.shape
    stacked = predictions.reshape(conditions, batch, *predictions.shape[1:])
    weights = mix.reshape(conditions, batch, *(1,) * (predictions.ndim - 1))
    return np.sum(weights * stacked, axis=0)


def check_scale(name: str, scale: float) -> float:
    """`scale` if it is a finite number ≥ 0, else a `UsageError`."""
    if not np.isfinite(scale) or scale < 0:
        raise UsageError(name, got=scale, expected="a finite number, 0 or more")
    return float(scale)
