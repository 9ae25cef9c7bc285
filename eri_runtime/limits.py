"""What a bundle was exported for: how many images in one call, and of which size."""

from __future__ import annotations

import math

from eri_runtime.errors import SizeError
from eri_runtime.latents import latent_shape
from eri_runtime.spec import Bundle, ShapeRange
from eri_runtime.vae import DECODER


def check_count(bundle: Bundle, count: int) -> int:
    """`count`, if so many images can be made in one call; else a `SizeError`."""
    images = images_at_once(bundle)
    if count not in images:
        expected = f"{images.min} to {images.max}, as it was exported"
        fix = "make them in several calls" if count > images.max else "ask for more"
        raise SizeError("images in one call", got=count, expected=expected, fix=fix)
    return count


def images_at_once(bundle: Bundle) -> ShapeRange:
    """What the VAE's decoder takes, or where there is none, the denoiser with CFG."""
    if DECODER in bundle.components:
        return bundle.components[DECODER].ranges["batch"]
    rows = bundle.components["denoiser"].ranges["batch"]
    return ShapeRange(min=max(1, rows.min // 2), opt=max(1, rows.opt // 2), max=rows.max // 2)


def check_size(bundle: Bundle, height: int, width: int) -> None:
    """Raise `SizeError` unless latents can have this size and the bundle was exported for it."""
    latent_shape(bundle.latents, height, width)
    factor = bundle.latents.factor
    for name, pixels in (("height", height), ("width", width)):
        side = latents_a_side(bundle, name)
        if pixels // factor not in side:
            expected = f"{side.min * factor} to {side.max * factor}, as it was exported"
            raise SizeError(name, got=pixels, expected=expected)


def latents_a_side(bundle: Bundle, name: str) -> ShapeRange:
    """The latents a height or width may have: the decoder's, or where there is none the denoiser's.

    Flux's denoiser has its latents packed, so it knows only the patches of the largest square.
    """
    ranges = bundle.components[DECODER if DECODER in bundle.components else "denoiser"].ranges
    if name in ranges:
        return ranges[name]
    patch, most = bundle.latents.patch, math.isqrt(ranges["patches"].max)
    return ShapeRange(min=patch, opt=patch, max=patch * most)
