"""Dynamic thresholding: what clipping x_0 becomes where guidance has pushed it out of range."""

from __future__ import annotations

from math import isfinite

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eri_runtime.checks import floats, real
from eri_runtime.errors import SizeError

THRESHOLD, PERCENTILE = 1.0, 0.995  # Imagen's


def dynamic_thresholding(
    sample: ArrayLike, threshold: float = THRESHOLD, percentile: float = PERCENTILE
) -> NDArray:
    """Scale what is out of range back into it, an image at a time; (B, …) of the same dtype.

        s = max(quantile(|x|, percentile), threshold), x' = clip(x, −s, s)·threshold/s

    over all axes but the first (Saharia et al. 2022, arXiv 2205.11487, sec. 2.3, whose `threshold`
    is 1). `sample` holds floats, most often x_0. `threshold` is the largest absolute value the data
    has, a finite number above 0: 1 for pixels in [−1, 1]. `percentile` is a fraction in (0, 1].
    An image within the threshold is returned as it is.
    Raises `UsageError` for a threshold or percentile out of range, `SizeError` for a sample that is
    no batch of arrays, `NonFiniteError` for NaN or Inf in it.
    """
    check_limits(threshold, percentile)
    x = floats("sample", sample)
    if x.ndim < 2 or not x.size:
        raise SizeError("sample", got=x.shape, expected="(B, …), at least one value each")
    wide = x.astype(np.float64)
    axes = tuple(range(1, x.ndim))
    s = np.maximum(np.quantile(np.abs(wide), percentile, axis=axes, keepdims=True), threshold)
    # clip(x, −s, s)·r is clip(x·r, −s·r, s·r), and s·r is the threshold
    return np.clip(wide * (threshold / s), -threshold, threshold).astype(x.dtype)


def check_limits(threshold: float, percentile: float) -> None:
    """Raise `UsageError` naming the one of the two that is out of range."""
    real("threshold", threshold, "a finite number above 0", lambda n: isfinite(n) and n > 0)
    percent = isinstance(percentile, int | float) and 1 < percentile <= 100
    fix = f"write {percentile / 100:g}" if percent else None
    real("percentile", percentile, "a fraction above 0, at most 1", lambda n: 0 < n <= 1, fix)
