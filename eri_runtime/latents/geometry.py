"""Geometry of latents: shapes, Flux's patches, and the VAE's scale and shift."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import LatentSpec
from eri_runtime.errors import SizeError

Array = NDArray[np.float32]


def latent_shape(spec: LatentSpec, height: int, width: int) -> tuple[int, int, int]:
    """Returns the latents' shape (C, h, w) for an image of height × width pixels.

    Raises `SizeError` unless both sides are multiples of `factor·patch`; the message names the
    nearest multiples.
    """
    step = spec.factor * spec.patch
    for name, size in (("height", height), ("width", width)):
        if size < step or size % step:
            below = max(size // step * step, step)
            fix = f"{below} and {below + step} are the nearest"
            raise SizeError(name, got=size, expected=f"a positive multiple of {step}", fix=fix)
    return spec.channels, height // spec.factor, width // spec.factor


def token_count(spec: LatentSpec, height: int, width: int) -> int:
    """Returns the number of patches, the denoiser's image tokens, for height × width pixels."""
    _, h, w = latent_shape(spec, height, width)
    return (h // spec.patch) * (w // spec.patch)


def patchify(latents: Array, patch: int = 2) -> Array:
    """Packs latents (B, C, h, w) as Flux does: (B, h/p·w/p, C·p²), channel-major in a patch."""
    b, c, h, w = latents.shape
    tiles = latents.reshape(b, c, h // patch, patch, w // patch, patch)
    return tiles.transpose(0, 2, 4, 1, 3, 5).reshape(b, -1, c * patch * patch)


def unpatchify(tokens: Array, height: int, width: int, patch: int = 2) -> Array:
    """Unpacks Flux's tokens (B, h/p·w/p, C·p²) to latents (B, C, height, width)."""
    b, _, c = tokens.shape
    tiles = tokens.reshape(b, height // patch, width // patch, c // patch**2, patch, patch)
    return tiles.transpose(0, 3, 1, 4, 2, 5).reshape(b, -1, height, width)


def image_ids(height: int, width: int, patch: int = 2) -> Array:
    """Returns the position ids (0, row, column), (h/p·w/p, 3), for Flux's rotary embedding."""
    rows, columns = np.indices((height // patch, width // patch), dtype=np.float32)
    return np.stack([np.zeros_like(rows), rows, columns], axis=-1).reshape(-1, 3)


def to_vae(spec: LatentSpec, latents: Array) -> Array:
    """Converts latents from the denoiser's scale to the VAE's: z = x/scale·std + mean."""
    std, mean = _statistics(spec)
    return latents / np.float32(spec.scale) * std + mean


def from_vae(spec: LatentSpec, z: Array) -> Array:
    """Converts latents from the VAE's scale to the denoiser's: x = (z − mean)·scale/std."""
    std, mean = _statistics(spec)
    return (z - mean) * np.float32(spec.scale) / std


def _statistics(spec: LatentSpec) -> tuple[Array, Array]:
    """Returns standard deviation and mean of the VAE's latents: (C, 1, 1), or (1, 1, 1) for all."""
    std, mean = spec.std or (1.0,), spec.mean or (spec.shift,)
    return (
        np.array(std, dtype=np.float32)[:, None, None],
        np.array(mean, dtype=np.float32)[:, None, None],
    )
