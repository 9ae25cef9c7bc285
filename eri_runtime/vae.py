"""Images to the denoiser's latents and back, through a bundle's VAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import SizeError
from eri_runtime.executors.base import check_finite
from eri_runtime.latents import from_vae, latent_shape, patchify, to_vae, unpatchify
from eri_runtime.pieces import in_pieces
from eri_runtime.spec import Bundle

Array = NDArray[np.float32]
Run = Callable[[str, Mapping[str, NDArray]], dict[str, NDArray]]
ENCODER, DECODER = "vae_encoder", "vae_decoder"
LOGVAR = (-30.0, 20.0)  # the range diffusers keeps it in


@dataclass(frozen=True)
class VaeMode:
    """How the VAE is run: at most `images` of a batch at once, and in tiles of `tile` pixels.

    None is all at once, and a picture whole.
    """

    images: int | None = None
    tile: int | None = None


WHOLE = VaeMode()


def pack(bundle: Bundle, latents: Array) -> Array:
    """(B, C, h, w) in the layout the denoiser sees: packed patches for Flux, itself else."""
    return patchify(latents, bundle.latents.patch) if bundle.family == "flux" else latents


def unpack(bundle: Bundle, latents: Array, height: int, width: int) -> Array:
    """The inverse of `pack`, for an image of height × width pixels.

    Raises `SizeError` for latents of another size.
    """
    shape = latent_shape(bundle.latents, height, width)
    packed = pack(bundle, np.broadcast_to(np.float32(0), (len(latents), *shape))).shape
    if latents.shape != packed:
        raise SizeError("latents", got=latents.shape, expected=packed)
    if bundle.family != "flux":
        return latents
    return unpatchify(latents, *shape[1:], bundle.latents.patch)


def decode(bundle: Bundle, run: Run, latents: Array, height: int, width: int) -> Array:
    """Denoiser latents to images (B, 3, height, width), about [−1, 1]."""
    z = to_vae(bundle.latents, unpack(bundle, latents, height, width))
    return check_finite("decoded image", run(DECODER, {"latents": z})["image"])


def encode(bundle: Bundle, run: Run, pixels: Array, unit: Array | None = None) -> Array:
    """Images (B, 3, H, W) in [−1, 1] to latents (B, C, h, w) in the denoiser's scale.

    With `unit` normal noise (B, C, h, w), a sample of the VAE's posterior, mean + exp(logvar/2)·n
    (Kingma & Welling 2014, arXiv 1312.6114, section 2.3), else its mean.
    """
    rows = bundle.components[ENCODER].ranges["batch"]
    outputs = in_pieces(lambda inputs: run(ENCODER, inputs), rows, {"image": pixels})
    z = outputs["mean"]
    if unit is not None:
        z = z + np.exp(np.clip(outputs["logvar"], *LOGVAR) / 2) * unit
    return check_finite("encoded image", from_vae(bundle.latents, z))
