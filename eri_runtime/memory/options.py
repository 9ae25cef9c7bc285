"""The options of `eri generate` that are about memory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from eri_runtime.memory.mode import TILE, MemoryEfficientSamplingConfig


def add_memory_options(group: Any) -> None:
    """Add them to an argument group."""
    group.add_argument(
        "--low-memory", action="store_true", help="leave weights in their files' pages; slower"
    )
    group.add_argument("--offload", action="store_true", help="one component in memory at a time")
    group.add_argument(
        "--sequential-offload",
        action="store_true",
        help="and a part of the denoiser's weights at a time; slower",
    )
    group.add_argument(
        "--attention-slicing",
        action="store_true",
        help="want a bundle that was exported with `--attention-slice`",
    )
    group.add_argument(
        "--vae-slicing", action="store_true", help="the VAE takes one image at a time"
    )
    group.add_argument(
        "--vae-tiling",
        action="store_true",
        help="the VAE takes a tile at a time, with blended seams; pictures change a little",
    )
    group.add_argument(
        "--vae-tile", type=int, metavar="SIDE", help=f"pixels a side of such a tile ({TILE})"
    )
    group.add_argument(
        "--embeddings",
        type=Path,
        metavar="FOLDER",
        help="keep prompts' embeddings there; for those that are there no text encoder is opened",
    )


def memory_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the options say, as keywords of `eri_runtime.load`."""
    tile = {} if options.vae_tile is None else {"tile_size": options.vae_tile}
    config = MemoryEfficientSamplingConfig(
        enable_cpu_offload=options.offload,
        enable_sequential_cpu_offload=options.sequential_offload,
        enable_attention_slicing=options.attention_slicing,
        enable_vae_slicing=options.vae_slicing,
        enable_vae_tiling=options.vae_tiling or options.vae_tile is not None,
        **tile,
    )
    return {"low_memory": options.low_memory, "memory": config, "embeddings": options.embeddings}
