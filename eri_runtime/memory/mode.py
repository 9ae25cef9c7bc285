"""How a pipeline is run in less memory: `MemoryEfficientSamplingConfig`, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from eri_runtime.checks import whole
from eri_runtime.errors import UsageError, short
from eri_runtime.vae import WHOLE, VaeMode

TILE = 512  # pixels a side, as diffusers has it


@dataclass(frozen=True)
class MemoryEfficientSamplingConfig:
    """What is given up, time or bits, to run in less memory; none of it changes the sampling.

    `enable_cpu_offload` opens a component when it is needed and closes it after, so one is in
    memory at a time. `enable_sequential_cpu_offload` moreover has only a part of the denoiser's
    weights in memory, which are read again in every step. `enable_attention_slicing` asks for a
    bundle whose graphs compute attention a few heads at a time (`eri export --attention-slice`);
    `slice_size` is how many, any if None. `enable_vae_slicing` runs the VAE an image at a time, and
    `enable_vae_tiling` a tile at a time, of `tile_size` pixels a side, with blended seams; it
    changes the picture a little.

    Raises `UsageError` naming the field.
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
            whole("slice_size", self.slice_size, 1)
            if not self.enable_attention_slicing:
                got, expected = "a size and no slicing", "enable_attention_slicing=True beside it"
                raise UsageError("slice_size", got=got, expected=expected)
        whole("tile_size", self.tile_size, 1)

    @property
    def mode(self) -> Mode:
        """The mode it asks for."""
        tile = self.tile_size if self.enable_vae_tiling else None
        return Mode(
            vae=VaeMode(images=1 if self.enable_vae_slicing else None, tile=tile),
            offloaded=self.enable_cpu_offload or self.enable_sequential_cpu_offload,
            streamed=self.enable_sequential_cpu_offload,
        )


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How a request is run.

    The denoiser computes at most `rows` of its batch (images times conditions) at once, all if
    None. `offloaded`: one component is open at a time. `low_memory` and `streamed` are those of
    `executors.base.Settings`.
    """

    rows: int | None = None
    vae: VaeMode = WHOLE
    offloaded: bool = False
    low_memory: bool = False
    streamed: bool = False

    def but(self, **changes: object) -> Mode:
        """The same with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


USUAL = MemoryEfficientSamplingConfig()
