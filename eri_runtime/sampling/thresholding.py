"""Dynamic thresholding: brings the denoised x_0 back into range after strong guidance."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eri_runtime.bundle import Defaults
from eri_runtime.checks import floats, real
from eri_runtime.errors import SizeError

Floats = NDArray[np.float32]
THRESHOLD, PERCENTILE = 1.0, 0.995  # as in Imagen


def dynamic_thresholding(
    sample: ArrayLike, threshold: float = THRESHOLD, percentile: float = PERCENTILE
) -> NDArray[Any]:
    """Clips each image of a batch at a percentile of its absolute values, then rescales it.

        s = max(quantile(|x|, percentile), threshold), x' = clip(x, −s, s)·threshold/s

    The quantile is over all axes but the first (Saharia et al. 2022, arXiv 2205.11487, sec. 2.3,
    where `threshold` is 1). An image within the threshold stays unchanged.

    Args:
        sample: A batch (B, …) of floats, usually the denoised x_0.
        threshold: Largest absolute value of valid data, a finite number above 0. 1 for pixels in
            [−1, 1].
        percentile: Fraction of the values to keep below the clipping value s, above 0, at most 1.

    Returns:
        The thresholded batch, in the shape and dtype of `sample`.

    Raises:
        UsageError: If `threshold` or `percentile` is out of range, or `sample` has no floats.
        SizeError: If `sample` is not a batch of non-empty arrays.
        NonFiniteError: If `sample` contains NaN or Inf.

    Example:
        >>> eri.dynamic_thresholding([[0.0, 0.5, -1.0, 4.0]], percentile=0.75)
        array([[ 0.        ,  0.28571429, -0.57142857,  1.        ]])
    """
    check_limits(threshold, percentile)
    threshold, percentile = float(threshold), float(percentile)
    x = floats("sample", sample)
    if x.ndim < 2 or not x.size:
        raise SizeError("sample", got=x.shape, expected="(B, …), at least one value each")
    wide = x.astype(np.float64)
    axes = tuple(range(1, x.ndim))
    s = np.maximum(np.quantile(np.abs(wide), percentile, axis=axes, keepdims=True), threshold)
    # with r = threshold/s: clip(x, −s, s)·r = clip(x·r, −s·r, s·r), and s·r is the threshold
    clipped: NDArray[Any] = np.clip(wide * (threshold / s), -threshold, threshold)
    return clipped.astype(x.dtype)


def scheduler_clipping(defaults: Defaults) -> Callable[[Floats], Floats] | None:
    """Returns what the checkpoint's scheduler does to x_0 in every step, or None.

    diffusers' `clip_sample` clips it to ±`clip_sample_range`. Its `thresholding` is that of Saharia
    et al. with the clipping value s at least 1 and at most `sample_max_value`.
    """
    if defaults.thresholding:
        percentile, most = defaults.thresholding

        def threshold(x: Floats) -> Floats:
            axes = tuple(range(1, x.ndim))
            s = np.clip(np.quantile(np.abs(x), percentile, axis=axes, keepdims=True), 1, most)
            clipped: Floats = (np.clip(x, -s, s) / s).astype(np.float32)
            return clipped

        return threshold
    if (limit := defaults.clip) is not None:
        return lambda x: np.clip(x, -np.float32(limit), np.float32(limit))
    return None


def check_limits(threshold: float, percentile: float) -> None:
    """Raises `UsageError` if the threshold or the percentile is out of range."""
    real("threshold", threshold, "a finite number above 0", lambda n: isfinite(n) and n > 0)
    in_percent = isinstance(percentile, int | float) and 1 < percentile <= 100
    fix = f"write {percentile / 100:g}" if in_percent else None
    real("percentile", percentile, "a fraction above 0, at most 1", lambda n: 0 < n <= 1, fix)
