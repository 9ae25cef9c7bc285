"""The difference between two images: largest pixel difference, PSNR and NVIDIA's FLIP."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bench.record import Distance, Limit

Pixels = NDArray[np.uint8]

# The limits of a row by its precision. In float32 only rounding differs, which moves a pixel by a
# level or two of 255: 45 dB is a mean square of 2 levels. 16 bits change an image visibly, as the
# sampler's steps and guidance amplify rounding errors. Engines that compute in bfloat16 wherever
# possible measured 39 to 50 dB; one that also rounds the timestep measured 22 dB, which is a
# different image.
LIMITS = {
    "fp32": Limit(psnr=45.0, flip=0.02),
    "fp16": Limit(psnr=32.0, flip=0.1),
    "bf16": Limit(psnr=30.0, flip=0.12),
}
# Step caching trades the distance for speed: any is shown, and none disqualifies a row.
LOSSY = Limit(psnr=0.0, flip=1.0)

# levels of 255 that tell how an engine turns numbers into bytes, and nothing of its pictures:
# OpenVINO GenAI cuts off what others round
ROUNDING = 1


def distance(picture: Pixels, reference: Pixels) -> Distance:
    """Returns the distance of a picture from a reference, both (H, W, 3) uint8."""
    difference = picture.astype(np.int16) - reference.astype(np.int16)
    square = float(np.mean(np.square(difference, dtype=np.float64)))
    return Distance(
        max=int(np.abs(difference).max()),
        psnr=None if square == 0 else round(float(10 * np.log10(255**2 / square)), 3),
        flip=_flip(picture, reference),
    )


def worst(distances: Sequence[Distance]) -> Distance:
    """Returns the worst value of each metric."""
    psnrs = [each.psnr for each in distances if each.psnr is not None]
    flips = [each.flip for each in distances if each.flip is not None]
    return Distance(
        max=max(each.max for each in distances),
        psnr=min(psnrs, default=None),
        flip=max(flips, default=None),
    )


def within_limit(measured: Distance, limit: Limit) -> bool:
    """Returns whether a distance is within a limit; a metric that is None always is.

    A picture that differs by no more than `ROUNDING` is within every limit.
    """
    if measured.max <= ROUNDING:
        return True
    psnr = measured.psnr is None or measured.psnr >= limit.psnr
    return psnr and (measured.flip is None or measured.flip <= limit.flip)


def _flip(picture: Pixels, reference: Pixels) -> float | None:
    """Returns the mean of FLIP (Andersson et al. 2020) at its default of 67 pixels per degree.

    None if `flip-evaluator` is not installed.
    """
    if importlib.util.find_spec("flip_evaluator") is None:
        return None
    from flip_evaluator import evaluate

    images = (np.ascontiguousarray(each, np.float32) / 255 for each in (reference, picture))
    _, mean, _ = evaluate(*images, "LDR", applyMagma=False)
    return round(float(mean), 5)
