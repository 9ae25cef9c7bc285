"""Encodes images to the denoiser's latents and decodes them, with a bundle's VAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import Bundle, ComponentSpec, ShapeRange
from eri_runtime.checks import check_finite, float32, integer, to_numpy
from eri_runtime.errors import SizeError, UsageError
from eri_runtime.latents.chunks import run_in_chunks
from eri_runtime.latents.geometry import from_vae, latent_shape, patchify, to_vae, unpatchify
from eri_runtime.latents.tiling import TiledSide, run_in_tiles, tile_side

Array = NDArray[np.float32]
Run = Callable[[str, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]
ENCODER, DECODER = "vae_encoder", "vae_decoder"
LOGVAR = (-30.0, 20.0)  # the range that diffusers clips the log variance to


@dataclass(frozen=True)
class VaeMode:
    """Slicing and tiling of the VAE, to save memory.

    Tiling changes an image slightly, because each tile is normalised by its own statistics;
    `benchmarks/vae_tiling.py` measures by how much.

    Attributes:
        images: Images per call of the VAE (slicing), 1 or more. Default: the whole batch. A graph
            exported for a fixed batch size still computes that many.
        tile: Side of a tile in pixels, 1 or more. Default: no tiling. It is clamped to the sizes
            that the graph accepts. Tiles are computed for one image at a time; an image that fits
            into one tile is computed whole.

    Raises:
        UsageError: If a number is not an integer, or is below 1.

    Example:
        >>> from eri_runtime.latents import VaeMode
        >>> VaeMode(images=1).with_changes(tile=512)
        VaeMode(images=1, tile=512)
    """

    images: int | None = None
    tile: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                integer(name, value, 1)

    def with_changes(self, **changes: int | None) -> VaeMode:
        """Returns a copy with some fields changed."""
        return replace(self, **changes)


WHOLE = VaeMode()


def pack(bundle: Bundle, latents: Array) -> Array:
    """Returns latents (B, C, h, w) in the denoiser's layout: packed for Flux, else unchanged."""
    return patchify(latents, bundle.latents.patch) if bundle.family == "flux" else latents


def unpack(bundle: Bundle, latents: Array, height: int, width: int) -> Array:
    """Returns latents in the denoiser's layout as (B, C, h, w), for height × width pixels.

    This is the inverse of `pack`. Raises `SizeError` for latents of another size.
    """
    shape = latent_shape(bundle.latents, height, width)
    zeros = np.broadcast_to(np.float32(0), (len(latents), *shape))
    packed_shape = pack(bundle, zeros).shape
    if latents.shape != packed_shape:
        raise SizeError("latents", got=latents.shape, expected=packed_shape)
    if bundle.family != "flux":
        return latents
    return unpatchify(latents, *shape[1:], bundle.latents.patch)


def check_latents(bundle: Bundle, latents: Any, height: int, width: int) -> Array:
    """Returns latents in the denoiser's layout as float32, for height × width pixels.

    Raises `SizeError` for latents of another size, `UsageError` for anything but numbers, and
    `NonFiniteError` for NaN or Inf.
    """
    array = float32("latents", to_numpy("latents", latents))
    if array.ndim == 0:
        raise SizeError("latents", got=array.shape, expected="(B, …)")
    unpack(bundle, array, height, width)
    return array


def decode(
    bundle: Bundle, run: Run, latents: Array, height: int, width: int, mode: VaeMode = WHOLE
) -> Array:
    """Decodes latents to images with the VAE's decoder.

    With tiles, an image may be larger than the decoder accepts.

    Args:
        bundle: A bundle with the VAE's decoder.
        run: Runs a component, by name, on inputs by name.
        latents: Latents in the denoiser's scale and layout (packed for Flux).
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        mode: Slicing and tiling. Default: the whole batch, untiled.

    Returns:
        Images (B, 3, height, width) float32 in about [−1, 1].

    Raises:
        SizeError: If the latents do not have the size for height × width pixels.
        UsageError: If the decoder cannot have tiles of this size.
        NonFiniteError: If the decoder returns NaN or Inf.
    """
    z = to_vae(bundle.latents, unpack(bundle, latents, height, width))
    return check_finite("decoded image", _run_half(bundle, run, DECODER, z, mode)["image"])


def encode(
    bundle: Bundle, run: Run, pixels: Array, unit: Array | None = None, mode: VaeMode = WHOLE
) -> Array:
    """Encodes images to latents with the VAE's encoder.

    Args:
        bundle: A bundle with the VAE's encoder.
        run: Runs a component, by name, on inputs by name.
        pixels: Images (B, 3, H, W) float32 in [−1, 1].
        unit: Standard normal noise n, (B, C, h, w), to sample the VAE's posterior,
            mean + exp(logvar/2)·n (Kingma & Welling 2014, arXiv 1312.6114, section 2.3). Default:
            the posterior's mean.
        mode: Slicing and tiling. Default: the whole batch, untiled.

    Returns:
        Latents (B, C, h, w) float32 in the denoiser's scale, not packed.

    Raises:
        UsageError: If the encoder cannot have tiles of this size.
        NonFiniteError: If the encoder returns NaN or Inf.
    """
    outputs = _run_half(bundle, run, ENCODER, pixels, mode)
    z = outputs["mean"]
    if unit is not None:
        z = z + np.exp(np.clip(outputs["logvar"], *LOGVAR) / 2) * unit
    return check_finite("encoded image", from_vae(bundle.latents, z))


def _run_half(
    bundle: Bundle, run: Run, name: str, inputs: Array, mode: VaeMode
) -> dict[str, NDArray[Any]]:
    """Runs the encoder or decoder on `inputs` (B, C, H, W), sliced and tiled as `mode` says."""
    spec, factor = bundle.components[name], bundle.latents.factor
    in_scale, out_scale = (1, factor) if name == DECODER else (factor, 1)
    tiles = None if mode.tile is None else _tiled_sides(spec, inputs, mode.tile, in_scale, factor)
    rows = spec.ranges["batch"]
    images = mode.images if tiles is None else 1
    if images is not None:
        rows = replace(rows, max=min(max(images, rows.min), rows.max))

    def run_rows(batch: Array) -> dict[str, Array]:
        return run_in_chunks(partial(run, name), rows, {spec.inputs[0].name: batch})

    if tiles is None:
        return run_rows(inputs)
    return run_in_tiles(run_rows, inputs, *tiles, given=in_scale, made=out_scale)


def _tiled_sides(
    spec: ComponentSpec, inputs: Array, tile: int, scale: int, factor: int
) -> tuple[TiledSide, TiledSide] | None:
    """Divides height and width into tiles, in latents; None if a single tile holds the image.

    `scale` is the number of input values per latent along a side.
    """
    totals = [size // scale for size in inputs.shape[2:]]
    rows, columns = (
        tile_side(total, _tile_side(spec.ranges[str(name)], total, tile, scale, factor))
        for name, total in zip(spec.inputs[0].shape[2:], totals, strict=True)
    )
    return None if len(rows.starts) == len(columns.starts) == 1 else (rows, columns)


def _tile_side(sizes: ShapeRange, total: int, tile: int, scale: int, factor: int) -> int:
    """Returns a tile's side in latents, clamped to `sizes`.

    Raises `UsageError` if the graph accepts a single size, larger than the tile.
    """
    least, most, wanted = -(-sizes.min // scale), sizes.max // scale, max(1, tile // factor)
    if least == most and wanted < min(most, total):
        raise UsageError(
            "VAE tile",
            got=f"{tile} pixels",
            expected=f"{most * factor}, the one size that it was exported for",
            fix="run it whole, or export without `--static`",
        )
    return min(max(wanted, least), most)
