"""Latents and their geometry: sizes, Flux's patches, the VAE's scale and shift."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import SizeError
from eri_runtime.spec import LatentSpec

Array = NDArray[np.float32]


def latent_shape(spec: LatentSpec, height: int, width: int) -> tuple[int, int, int]:
    """(C, h, w) for an image of height × width pixels.

    Raises `SizeError` unless both are multiples of `factor·patch`, naming the nearest that are.
    """
    step = spec.factor * spec.patch
    for name, size in (("height", height), ("width", width)):
        if size < step or size % step:
            below = max(size // step * step, step)
            fix = f"{below} and {below + step} are the nearest"
            raise SizeError(name, got=size, expected=f"a positive multiple of {step}", fix=fix)
    return spec.channels, height // spec.factor, width // spec.factor


def token_count(spec: LatentSpec, height: int, width: int) -> int:
    """The number of patches the denoiser sees."""
    _, h, w = latent_shape(spec, height, width)
    return (h // spec.patch) * (w // spec.patch)


def patchify(latents: Array, patch: int = 2) -> Array:
    """(B, C, h, w) to Flux's packed (B, h/p·w/p, C·p²): channel-major within a patch."""
    b, c, h, w = latents.shape
    tiles = latents.reshape(b, c, h // patch, patch, w // patch, patch)
    return tiles.transpose(0, 2, 4, 1, 3, 5).reshape(b, -1, c * patch * patch)


def unpatchify(tokens: Array, height: int, width: int, patch: int = 2) -> Array:
    """The inverse of `patchify`, to (B, C, height, width) latents."""
    b, _, c = tokens.shape
    tiles = tokens.reshape(b, height // patch, width // patch, c // patch**2, patch, patch)
    return tiles.transpose(0, 3, 1, 4, 2, 5).reshape(b, -1, height, width)


def image_ids(height: int, width: int, patch: int = 2) -> Array:
    """(h/p·w/p, 3) position ids (0, row, column) for Flux's rotary embedding."""
    rows, columns = np.indices((height // patch, width // patch), dtype=np.float32)
    return np.stack([np.zeros_like(rows), rows, columns], axis=-1).reshape(-1, 3)


def to_vae(spec: LatentSpec, latents: Array) -> Array:
    """The denoiser's latents in the VAE's own scale: z = x/scale + shift."""
    return latents / np.float32(spec.scale) + np.float32(spec.shift)


def from_vae(spec: LatentSpec, z: Array) -> Array:
    """The VAE's latents in the denoiser's scale: x = (z − shift)·scale."""
    return (z - np.float32(spec.shift)) * np.float32(spec.scale)
