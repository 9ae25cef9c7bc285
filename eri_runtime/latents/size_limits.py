"""The image counts and image sizes that a bundle was exported for."""

from __future__ import annotations

import math

from eri_runtime.bundle import Bundle, ShapeRange
from eri_runtime.errors import SizeError
from eri_runtime.latents.geometry import latent_shape
from eri_runtime.latents.vae import DECODER


def check_count(bundle: Bundle, count: int) -> int:
    """Returns `count`; raises `SizeError` if one call cannot generate that many images."""
    images = images_at_once(bundle)
    if count not in images:
        expected = f"{images.min} to {images.max}, as it was exported"
        fix = "make them in several calls" if count > images.max else "ask for more"
        raise SizeError("images in one call", got=count, expected=expected, fix=fix)
    return count


def images_at_once(bundle: Bundle) -> ShapeRange:
    """Returns the range of images per call.

    This is the batch range of the VAE's decoder or, in a bundle without one, half the denoiser's,
    since classifier-free guidance runs two rows per image; at least one image.
    """
    if DECODER in bundle.components:
        return bundle.components[DECODER].ranges["batch"]
    rows = bundle.components["denoiser"].ranges["batch"]
    least, usual, most = (max(1, count // 2) for count in (rows.min, rows.opt, rows.max))
    return ShapeRange(min=least, opt=usual, max=most)


def check_size(bundle: Bundle, height: int, width: int) -> None:
    """Raises `SizeError` unless latents can have this size and the bundle was exported for it."""
    latent_shape(bundle.latents, height, width)
    factor = bundle.latents.factor
    for name, pixels in (("height", height), ("width", width)):
        side = latent_side_range(bundle, name)
        if pixels // factor not in side:
            expected = f"{side.min * factor} to {side.max * factor}, as it was exported"
            raise SizeError(name, got=pixels, expected=expected)


def nearest_size(bundle: Bundle, width: int, height: int) -> tuple[int, int]:
    """Returns the width and height, in pixels, that suit a picture of any size best.

    It has the picture's proportions as nearly as the bundle's sizes allow, and at most the pixels
    of the bundle's default size.
    """
    step = bundle.latents.factor * bundle.latents.patch
    most = bundle.defaults.width * bundle.defaults.height
    scale = min(1.0, math.sqrt(most / (width * height)))

    def side(name: str, pixels: int) -> int:
        limits = latent_side_range(bundle, name)
        least = -(-limits.min * bundle.latents.factor // step) * step
        greatest = limits.max * bundle.latents.factor // step * step
        return max(least, min(greatest, round(pixels * scale / step) * step))

    return side("width", width), side("height", height)


def latent_side_range(bundle: Bundle, name: str) -> ShapeRange:
    """Returns the range of latents along `name`, which is "height" or "width".

    This is the range of the VAE's decoder or, in a bundle without one, of the denoiser. Flux's
    denoiser takes packed latents and has no height and width: its limit is the largest square.
    """
    ranges = bundle.components[DECODER if DECODER in bundle.components else "denoiser"].ranges
    if name in ranges:
        return ranges[name]
    patch, largest = bundle.latents.patch, math.isqrt(ranges["patches"].max)
    return ShapeRange(min=patch, opt=patch, max=patch * largest)
