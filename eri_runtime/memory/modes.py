"""`MemoryEfficientSamplingConfig`, the user's choice, and `Mode`, how one request runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from eri_runtime.checks import integer
from eri_runtime.errors import UsageError, short
from eri_runtime.latents import WHOLE, VaeMode

TILE = 512
"""Default side of a VAE tile in pixels, as in diffusers."""


@dataclass(frozen=True)
class MemoryEfficientSamplingConfig:
    """How to run a pipeline in less memory, at the cost of time.

    Pass it as `memory` to `eri_runtime.load`. By default everything stays in memory and every
    batch is computed at once; a pipeline that runs out of memory then backs off by itself. No field
    changes the sampling. `enable_vae_tiling` changes the decoded image slightly.

    Attributes:
        enable_cpu_offload: Open each component when it is needed and close it afterwards, so that
            one component is in memory at a time.
        enable_sequential_cpu_offload: In addition, keep only a part of the denoiser's weights in
            memory, and read them again in every step. Needs a bundle with segments or a TensorRT
            plan built with `--streaming`, and a loop other than `step` if segments are used.
        enable_attention_slicing: Require a bundle that computes attention a few heads at a time.
            Such a bundle is exported with `eri export --attention-slice`.
        slice_size: Number of heads per slice that the bundle must have. Default: any.
        enable_vae_slicing: Run the VAE one image at a time.
        enable_vae_tiling: Run the VAE one tile at a time and blend the seams.
        tile_size: Side of a tile in pixels, 1 or more; adjusted to what the VAE accepts.

    Raises:
        UsageError: If a field is of the wrong type or out of range; the message names it.

    Example:
        Open a pipeline that keeps one component in memory and decodes in tiles of 256 pixels:

            memory = eri.MemoryEfficientSamplingConfig(
                enable_cpu_offload=True, enable_vae_tiling=True, tile_size=256
            )
            with eri.load("bundles/sdxl", memory=memory) as pipe:
                pipe("a red heart")

        A wrong value is refused at once:

        >>> eri.MemoryEfficientSamplingConfig(tile_size=0)
        Traceback (most recent call last):
            ...
        eri_runtime.errors.UsageError: tile_size: got 0, expected an integer, 1 or more
    """

    enable_cpu_offload: bool = False
    enable_sequential_cpu_offload: bool = False
    enable_attention_slicing: bool = False
    slice_size: int | None = None
    enable_vae_slicing: bool = False
    enable_vae_tiling: bool = False
    tile_size: int = TILE

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.startswith("enable_") and not isinstance(value, bool):
                raise UsageError(name, got=short(value), expected="True or False")
        if self.slice_size is not None:
            integer("slice_size", self.slice_size, 1)
            if not self.enable_attention_slicing:
                got, expected = "a size and no slicing", "enable_attention_slicing=True with it"
                raise UsageError("slice_size", got=got, expected=expected)
        if integer("tile_size", self.tile_size, 1) != TILE and not self.enable_vae_tiling:
            got, expected = f"{short(self.tile_size)} without enable_vae_tiling", "both, or neither"
            raise UsageError("tile_size", got=got, expected=expected)

    @property
    def mode(self) -> Mode:
        """The `Mode` that requests start in."""
        tile = self.tile_size if self.enable_vae_tiling else None
        return Mode(
            vae=VaeMode(images=1 if self.enable_vae_slicing else None, tile=tile),
            offloaded=self.enable_cpu_offload or self.enable_sequential_cpu_offload,
            streamed=self.enable_sequential_cpu_offload,
        )


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How a request runs.

    Attributes:
        rows: Most rows of the denoiser's batch (images times conditions) per call. Default: all.
        vae: Most images and largest tile per call of the VAE. Default: all images, no tiles.
        offloaded: Keep one component open at a time.
        low_memory: Leave weights in their files, as in `executors.Settings`.
        streamed: Keep a part of the denoiser's weights in memory, as in `executors.Settings`.
    """

    rows: int | None = None
    vae: VaeMode = WHOLE
    offloaded: bool = False
    low_memory: bool = False
    streamed: bool = False

    def with_changes(self, **changes: Any) -> Mode:
        """Returns a copy with some fields changed."""
        return replace(self, **changes)


DEFAULT_MEMORY = MemoryEfficientSamplingConfig()
"""The default: nothing is traded for memory."""
