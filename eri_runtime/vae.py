"""Images to the denoiser's latents and back, through a bundle's VAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import whole
from eri_runtime.errors import SizeError, UsageError
from eri_runtime.executors.base import check_finite
from eri_runtime.latents import from_vae, latent_shape, patchify, to_vae, unpatchify
from eri_runtime.pieces import in_pieces
from eri_runtime.spec import Bundle, ComponentSpec, ShapeRange
from eri_runtime.tiles import Cut, cut, in_tiles

Array = NDArray[np.float32]
Run = Callable[[str, Mapping[str, NDArray]], dict[str, NDArray]]
ENCODER, DECODER = "vae_encoder", "vae_decoder"
LOGVAR = (-30.0, 20.0)  # the range diffusers keeps it in


@dataclass(frozen=True)
class VaeMode:
    """How the VAE is run: at most `images` of a batch at once, and in tiles of `tile` pixels.

    None is all at once, and a picture whole. A graph of one batch size computes that many all the
    same. A tile's side is moved into the sizes that the graph takes, and a tile is computed for one
    image at a time; a picture no larger is computed whole. Tiles change a picture a little, as each
    is normalised by its own statistics; `benchmarks/vae_tiling.py` measures it.

    Raises `UsageError` for a number below 1.
    """

    images: int | None = None
    tile: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                whole(name, value, 1)

    def but(self, **changes: int | None) -> VaeMode:
        """The same with some fields changed."""
        return replace(self, **changes)


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


def decode(
    bundle: Bundle, run: Run, latents: Array, height: int, width: int, mode: VaeMode = WHOLE
) -> Array:
    """Denoiser latents to images (B, 3, height, width), about [−1, 1].

    In tiles, they may be larger than the decoder takes. Raises `SizeError` for latents of another
    size, `UsageError` for a tile that the decoder cannot have, and `NonFiniteError`.
    """
    z = to_vae(bundle.latents, unpack(bundle, latents, height, width))
    return check_finite("decoded image", _outputs(bundle, run, DECODER, z, mode)["image"])


def encode(
    bundle: Bundle, run: Run, pixels: Array, unit: Array | None = None, mode: VaeMode = WHOLE
) -> Array:
    """Images (B, 3, H, W) in [−1, 1] to latents (B, C, h, w) in the denoiser's scale.

    With `unit` normal noise (B, C, h, w), a sample of the VAE's posterior, mean + exp(logvar/2)·n
    (Kingma & Welling 2014, arXiv 1312.6114, section 2.3), else its mean. Raises as `decode` does.
    """
    outputs = _outputs(bundle, run, ENCODER, pixels, mode)
    z = outputs["mean"]
    if unit is not None:
        z = z + np.exp(np.clip(outputs["logvar"], *LOGVAR) / 2) * unit
    return check_finite("encoded image", from_vae(bundle.latents, z))


def _outputs(
    bundle: Bundle, run: Run, name: str, given: Array, mode: VaeMode
) -> dict[str, NDArray]:
    """What a half of the VAE makes of (B, C, H, W)."""
    spec, factor = bundle.components[name], bundle.latents.factor
    scale, made = (1, factor) if name == DECODER else (factor, 1)
    cuts = None if mode.tile is None else _cuts(spec, given, mode.tile, scale, factor)
    rows = spec.ranges["batch"]
    images = mode.images if cuts is None else 1
    if images is not None:
        rows = replace(rows, max=min(max(images, rows.min), rows.max))

    def run_rows(part: Array) -> dict[str, Array]:
        return in_pieces(partial(run, name), rows, {spec.inputs[0].name: part})

    if cuts is None:
        return run_rows(given)
    return in_tiles(run_rows, given, *cuts, given=scale, made=made)


def _cuts(
    spec: ComponentSpec, given: Array, tile: int, scale: int, factor: int
) -> tuple[Cut, Cut] | None:
    """Both sides, of which `scale` is one latent, in tiles; None for a picture that one holds."""
    rows, columns = (
        cut(size // scale, _side(spec.ranges[str(name)], size // scale, tile, scale, factor))
        for name, size in zip(spec.inputs[0].shape[2:], given.shape[2:], strict=True)
    )
    return None if len(rows.begins) == len(columns.begins) == 1 else (rows, columns)


def _side(sizes: ShapeRange, total: int, tile: int, scale: int, factor: int) -> int:
    """A tile's side in latents, within `sizes`; `UsageError` where those are one, and larger."""
    least, most, wished = -(-sizes.min // scale), sizes.max // scale, max(1, tile // factor)
    if least == most and wished < min(most, total):
        raise UsageError(
            "VAE tile",
            got=f"{tile} pixels",
            expected=f"{most * factor}, the one size that it was exported for",
            fix="run it whole, or export without `--static`",
        )
    return min(max(wished, least), most)
