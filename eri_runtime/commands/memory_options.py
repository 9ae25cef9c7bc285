"""The memory options of `eri generate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

TILE = 512  # that of `eri_runtime.memory`, whose import would bring NumPy


def add_memory_options(group: Any) -> None:
    """Adds the options to an argument group."""
    group.add_argument(
        "--low-memory",
        action="store_true",
        help="map weights from their files (ONNX Runtime); slower",
    )
    group.add_argument(
        "--offload", action="store_true", help="keep one component in memory at a time"
    )
    group.add_argument(
        "--sequential-offload",
        action="store_true",
        help="keep one component, and a part of the denoiser's weights, at a time; slower",
    )
    group.add_argument(
        "--attention-slicing",
        action="store_true",
        help="require a bundle that was exported with `--attention-slice`",
    )
    group.add_argument(
        "--vae-slicing", action="store_true", help="run the VAE on one image at a time"
    )
    group.add_argument(
        "--vae-tiling",
        action="store_true",
        help="run the VAE on one tile at a time, with blended seams; images change a little",
    )
    group.add_argument(
        "--vae-tile",
        type=int,
        metavar="SIDE",
        help=f"side of a tile in pixels; implies --vae-tiling (default: {TILE})",
    )
    group.add_argument(
        "--embeddings",
        type=Path,
        metavar="FOLDER",
        help="keep embeddings of prompts in this folder; for prompts found there no text encoder "
        "is opened",
    )


def memory_keywords(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the keywords of `eri_runtime.load` that the options set."""
    from eri_runtime.memory import MemoryEfficientSamplingConfig

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
