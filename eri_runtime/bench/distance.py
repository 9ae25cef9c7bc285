"""How far a picture is from another: the largest difference, PSNR, and NVIDIA's FLIP."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bench.record import Distance, Limit

Pixels = NDArray[np.uint8]

# What a row must keep, by what it computes in. In float32 only rounding differs, which moves a
# pixel by a level or two of 255: 45 dB is a mean square of 2 levels. Sixteen bits change a picture
# in earnest, as the steps of a sampler and guidance amplify what they lose. Engines that compute in
# bfloat16 what can be were 39 to 50 dB off; one that rounds the clock too was 22 dB off, which is
# another picture.
LIMITS = {
    "fp32": Limit(psnr=45.0, flip=0.02),
    "fp16": Limit(psnr=32.0, flip=0.1),
    "bf16": Limit(psnr=30.0, flip=0.12),
}


def distance(picture: Pixels, reference: Pixels) -> Distance:
    """From a reference (H, W, 3) of the same size."""
    difference = picture.astype(np.int16) - reference.astype(np.int16)
    square = float(np.mean(np.square(difference, dtype=np.float64)))
    return Distance(
        max=int(np.abs(difference).max()),
        psnr=None if square == 0 else round(float(10 * np.log10(255**2 / square)), 3),
        flip=_flip(picture, reference),
    )


def worst(distances: Sequence[Distance]) -> Distance:
    """The worst of each figure."""
    psnrs = [each.psnr for each in distances if each.psnr is not None]
    flips = [each.flip for each in distances if each.flip is not None]
    return Distance(
        max=max(each.max for each in distances),
        psnr=min(psnrs, default=None),
        flip=max(flips, default=None),
    )


def keeps(found: Distance, limit: Limit) -> bool:
    """Whether a distance is within a limit; what is None is 0."""
    psnr = found.psnr is None or found.psnr >= limit.psnr
    return psnr and (found.flip is None or found.flip <= limit.flip)


def _flip(picture: Pixels, reference: Pixels) -> float | None:
    """The mean of FLIP (Andersson et al. 2020) at its usual 67 pixels a degree."""
    if importlib.util.find_spec("flip_evaluator") is None:
        return None
    from flip_evaluator import evaluate

    shown = (np.ascontiguousarray(each, np.float32) / 255 for each in (reference, picture))
    _, mean, _ = evaluate(*shown, "LDR", applyMagma=False)
    return round(float(mean), 5)
