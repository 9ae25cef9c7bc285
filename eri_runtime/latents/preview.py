"""Previews of latents without the VAE's decoder: RGB as a linear function of a latent's channels.

ComfyUI's latent2rgb uses published factors for a few VAEs; these are fitted to the bundle's VAE.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import Bundle, ShapeRange
from eri_runtime.errors import UsageError
from eri_runtime.images import to_pil, to_unit
from eri_runtime.latents.vae import ENCODER, Run, encode

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[np.float32]
SIDE = 8  # latents per side of a fitting picture, if the encoder accepts so small a picture
LATENTS = 1024  # in all fitting pictures together: many per unknown, yet quickly encoded
SEED = 0
NOISE_STD = 0.05
SATURATION = 2.5  # colours are clipped to the RGB cube, so many are pure, white or black


def fit_rgb(bundle: Bundle, run: Run) -> Array:
    """Fits the linear map from latents to RGB, for `to_rgb`.

    Encodes synthetic pictures with the bundle's own VAE and solves the least-squares problem
    (latents, 1) @ factors = RGB in [0, 1], where a latent's colour is the mean of the pixels that
    it covers.

    Args:
        bundle: A bundle with the VAE's encoder.
        run: Runs a component, by name, on inputs by name.

    Returns:
        Factors (C + 1, 3) float32; the last row is the constant term.

    Raises:
        UsageError: If the bundle has no VAE encoder.
    """
    if ENCODER not in bundle.components:
        raise UsageError(
            "preview",
            got=f"a bundle without {ENCODER}",
            expected="the VAE's encoder, to which its colours are fitted",
            fix="decode `step.denoised` with `finish`, or export again with `--vae`",
        )
    ranges, factor = bundle.components[ENCODER].ranges, bundle.latents.factor
    height, width = (_picture_side(ranges[f"image_{name}"], factor) for name in ("height", "width"))
    count = ceil(LATENTS * factor**2 / (height * width))
    pixels = fitting_pictures(count, height, width, factor)
    latents = encode(bundle, run, pixels)
    colours = to_unit(block_means(pixels, factor)).reshape(-1, 3)
    factors: Array
    factors, *_ = np.linalg.lstsq(
        _append_one(latents).reshape(len(colours), -1), colours, rcond=None
    )
    return factors


def to_rgb(factors: Array, latents: Array) -> Array:
    """Maps latents (B, C, h, w) in the denoiser's scale to RGB (B, h, w, 3) in [0, 1]."""
    rgb: Array = np.clip(_append_one(latents) @ factors, 0, 1)
    return rgb


def enlarge(rgb: Array, factor: int) -> list[Image]:
    """Converts RGB (B, h, w, 3) in [0, 1] to PIL images, enlarged `factor` times (bicubic)."""
    from PIL.Image import Resampling

    _, height, width, _ = rgb.shape
    size = width * factor, height * factor
    return [image.resize(size, Resampling.BICUBIC) for image in to_pil(rgb)]


def block_means(pixels: Array, factor: int) -> Array:
    """Averages (B, 3, H, W) over blocks of factor × factor: (B, 3, H/factor, W/factor)."""
    b, c, height, width = pixels.shape
    tiles = pixels.reshape(b, c, height // factor, factor, width // factor, factor)
    means: Array = tiles.mean(axis=(3, 5))
    return means


def fitting_pictures(count: int, height: int, width: int, factor: int) -> Array:
    """Draws synthetic pictures (count, 3, height, width) in [−1, 1] to fit the factors to.

    Each has a colour gradient, discs and squares in random colours that overlap as objects in
    photographs do, one to a few latents in size, and some Gaussian noise. Deterministic.
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
        pictures.append(picture + NOISE_STD * rng.standard_normal(picture.shape))
    stacked: NDArray[np.float64] = np.clip(pictures, -1, 1)
    return stacked.transpose(0, 3, 1, 2).astype(np.float32)


def _colours(rng: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    """Draws random colours (…, 3) in [−1, 1]."""
    colours: NDArray[np.float64] = SATURATION * rng.uniform(-1, 1, (*shape, 3))
    return np.clip(colours, -1, 1)


def _picture_side(pixels: ShapeRange, factor: int) -> int:
    """Returns `SIDE` latents in pixels, clamped to the encoder's range."""
    return min(max(SIDE * factor, pixels.min), pixels.max)


def _append_one(latents: Array) -> Array:
    """Returns latents (B, C, h, w) as (B, h, w, C + 1), with a last channel of ones."""
    channels_last = latents.transpose(0, 2, 3, 1)
    return np.concatenate([channels_last, np.ones_like(channels_last[..., :1])], axis=-1)
