"""A picture of latents without the VAE's decoder: RGB as a linear function of a latent's channels.

ComfyUI's latent2rgb has published factors for a few VAEs; here they are fitted to the bundle's own.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import UsageError
from eri_runtime.images import to_pil, to_unit
from eri_runtime.spec import Bundle, ShapeRange
from eri_runtime.vae import ENCODER, Run, encode

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[np.float32]
SIDE = 8  # latents along a side of a fitting picture, where the encoder takes so few
LATENTS = 1024  # of all fitting pictures together: many for each unknown, and soon encoded
SEED = 0
GRAIN = 0.05
SATURATION = 2.5  # colours are cut at the cube's faces: many are pure, white or black


def fit_rgb(bundle: Bundle, run: Run) -> Array:
    """(C + 1, 3) factors: the least squares of RGB in [0, 1] over (latents, 1).

    Synthetic pictures are encoded with the bundle's own VAE, and a latent stands for the mean of
    the pixels it covers. Raises `UsageError` for a bundle without the VAE's encoder.
    """
    if ENCODER not in bundle.components:
        raise UsageError(
            "preview",
            got=f"a bundle without {ENCODER}",
            expected="the VAE's encoder, to which its colours are fitted",
            fix="decode `step.denoised` with `finish`, or export again with `--vae`",
        )
    ranges, factor = bundle.components[ENCODER].ranges, bundle.latents.factor
    height, width = (_side(ranges[f"image_{name}"], factor) for name in ("height", "width"))
    count = ceil(LATENTS * factor**2 / (height * width))
    pixels = fitting_pictures(count, height, width, factor)
    latents = encode(bundle, run, pixels)
    colours = to_unit(block_means(pixels, factor)).reshape(-1, 3)
    return np.linalg.lstsq(_with_one(latents).reshape(len(colours), -1), colours, rcond=None)[0]


def to_rgb(factors: Array, latents: Array) -> Array:
    """(B, C, h, w) latents in the denoiser's scale to (B, h, w, 3) in [0, 1]."""
    rgb: Array = np.clip(_with_one(latents) @ factors, 0, 1)
    return rgb


def enlarged(rgb: Array, factor: int) -> list[Image]:
    """(B, h, w, 3) in [0, 1] to PIL images `factor` times as large, bicubic."""
    from PIL.Image import Resampling

    _, height, width, _ = rgb.shape
    size = width * factor, height * factor
    return [image.resize(size, Resampling.BICUBIC) for image in to_pil(rgb)]


def block_means(pixels: Array, factor: int) -> Array:
    """(B, 3, H, W) to (B, 3, H/factor, W/factor), the means of squares."""
    b, c, height, width = pixels.shape
    tiles = pixels.reshape(b, c, height // factor, factor, width // factor, factor)
    means: Array = tiles.mean(axis=(3, 5))
    return means


def fitting_pictures(count: int, height: int, width: int, factor: int) -> Array:
    """(count, 3, height, width) in [−1, 1]: a gradient, shapes in any colour before it, a grain.

    Discs and squares of one to a few latents hide one another, as things in photographs do. The
    same ones for the same numbers.
    """
    rng = np.random.default_rng(SEED)
    row, column = np.mgrid[:height, :width]
    pictures = []
    for _ in range(count):
        corners = _colours(rng, 2, 2)
        down, across = row[..., None] / height, column[..., None] / width
        top = (1 - across) * corners[0, 0] + across * corners[0, 1]
        bottom = (1 - across) * corners[1, 0] + across * corners[1, 1]
        picture = (1 - down) * top + down * bottom
        for _ in range(height * width // (8 * factor**2)):
            centre, radius = rng.uniform(0, (height, width)), factor * rng.uniform(0.75, 2.5)
            offsets = abs(row - centre[0]), abs(column - centre[1])
            distance = np.maximum(*offsets) if rng.random() < 0.5 else np.hypot(*offsets)
            picture[distance < radius] = _colours(rng)
        pictures.append(picture + GRAIN * rng.standard_normal(picture.shape))
    return np.clip(pictures, -1, 1).transpose(0, 3, 1, 2).astype(np.float32)


def _colours(rng: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    return np.clip(SATURATION * rng.uniform(-1, 1, (*shape, 3)), -1, 1)


def _side(pixels: ShapeRange, factor: int) -> int:
    """`SIDE` latents in pixels, or what of the encoder's range is nearest."""
    return min(max(SIDE * factor, pixels.min), pixels.max)


def _with_one(latents: Array) -> Array:
    """(B, C, h, w) to (B, h, w, C + 1), the last channel 1."""
    last = latents.transpose(0, 2, 3, 1)
    return np.concatenate([last, np.ones_like(last[..., :1])], axis=-1)
