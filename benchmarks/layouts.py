"""Config changes that give a family's networks other widths; imports no torch."""

from __future__ import annotations

from typing import Any


def unet(width: int, layers: tuple[int, int, int]) -> dict[str, Any]:
    """Returns SDXL's UNet with `width` channels at the first of three levels.

    `layers` is the number of transformer layers per level.
    """
    return {
        "block_out_channels": (width, 2 * width, 4 * width),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": layers,
        "attention_head_dim": tuple(each * width // 64 for each in (1, 2, 4)),
        "norm_num_groups": 32,
    }


def vae(width: int) -> dict[str, Any]:
    """Returns SD's VAE with `width` channels at the first of four levels; published: 128."""
    return {
        "block_out_channels": (width, 2 * width, 4 * width, 4 * width),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
    }
