"""The config of a VAE, from the shapes of its weights."""

from __future__ import annotations

from typing import Any

from eri_export.checkpoints.checkpoint import Config, Tensors
from eri_export.checkpoints.config_from_shapes.shapes import known, multiple, size
from eri_runtime.weights import count_numbered

GROUPS = "groups of its norms"


def config(tensors: Tensors, base: Config) -> dict[str, Any]:
    """Returns what shapes tell of a VAE's config: all but its scale and shift."""
    levels, groups = count_numbered(tensors, "encoder.down_blocks"), known(base, "norm_num_groups")
    names = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(levels)]
    return {
        "in_channels": size(tensors, "encoder.conv_in.weight", 1),
        "out_channels": size(tensors, "decoder.conv_out.weight", 0),
        "latent_channels": size(tensors, "decoder.conv_in.weight", 1),
        "block_out_channels": [multiple(tensors, name, 0, groups, GROUPS) for name in names],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": count_numbered(tensors, "encoder.down_blocks.0.resnets"),
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
    }
