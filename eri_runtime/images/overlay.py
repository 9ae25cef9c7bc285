"""Keeps the pixels of the original outside a mask, and blends along the mask's grey edge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eri_runtime.images.convert import to_pil
from eri_runtime.images.crop import Box, cover

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """The originals that generated pictures are blended with.

    Attributes:
        originals: (B, H, W, 3) float32 in [0, 1], or one for all, (1, H, W, 3).
        weights: Share of the generated picture in each pixel, (B, H, W, 1) or (1, H, W, 1)
            float32: 0 keeps the original, 1 replaces it.
        box: The part of the original that was generated; weights are 0 outside it. None: all of it.
    """

    originals: Array
    weights: Array
    box: Box | None = None

    def apply(self, generated: Array) -> Array:
        """Returns (1 − w)·original + w·generated, (B, H, W, 3) float32 in [0, 1].

        With a box, `generated` (B, h, w, 3) is first resized to cover it, in eight bits a channel.
        """
        if self.box is None:
            return _blended(self.originals, generated, self.weights)
        left, top, right, bottom = self.box
        part = np.s_[:, top:bottom, left:right]
        pieces = [cover(picture, right - left, bottom - top) for picture in to_pil(generated)]
        units = np.stack([np.asarray(piece, np.float32) / np.float32(255) for piece in pieces])
        result = np.repeat(self.originals, len(generated) // len(self.originals), axis=0)
        result[part] = _blended(self.originals[part], units, self.weights[part])
        return result


def _blended(original: Array, generated: Array, weights: Array) -> Array:
    """Returns (1 − w)·original + w·generated; exact where w is 0 or 1."""
    return (1 - weights) * original + weights * generated
