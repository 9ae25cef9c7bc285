"""The VAE in the names of latent diffusion's own code, which every single file uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from eri_export.checkpoint import Config, Tensors
from eri_export.sources.keys.parts import Entry, Table, count, expand, known, linear, multiple, size

GROUPS = "groups of its norms"

ENDS: Table = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
RESNET: Table = {
    **{name: name for name in ("norm1", "conv1", "norm2", "conv2")},
    "conv_shortcut": "nin_shortcut",
}
MIDDLE: Table = {
    **{f"resnets.0.{name}": f"block_1.{key}" for name, key in RESNET.items()},
    **{f"resnets.1.{name}": f"block_2.{key}" for name, key in RESNET.items()},
    "attentions.0.group_norm": "attn_1.norm",
    "attentions.0.to_q": ("attn_1.q", linear),
    "attentions.0.to_k": ("attn_1.k", linear),
    "attentions.0.to_v": ("attn_1.v", linear),
    "attentions.0.to_out.0": ("attn_1.proj_out", linear),
}


def entries(keys: Tensors) -> Iterator[Entry]:
    """Both halves; the file numbers the decoder's levels from the image, diffusers from z."""
    for half in ("encoder", "decoder"):
        yield from expand(ENDS, f"{half}.", f"{half}.")
        yield from expand(MIDDLE, f"{half}.mid_block.", f"{half}.mid.")
    downs, ups = count(keys, "encoder.down"), count(keys, "decoder.up")
    for i in range(downs):
        yield from _level(keys, f"encoder.down_blocks.{i}", f"encoder.down.{i}", "downsample")
    for i in range(ups):
        yield from _level(keys, f"decoder.up_blocks.{ups - 1 - i}", f"decoder.up.{i}", "upsample")


def _level(keys: Tensors, name: str, key: str, sampler: str) -> Iterator[Entry]:
    yield from expand({f"{sampler}rs.0.conv": f"{sampler}.conv"}, f"{name}.", f"{key}.")
    for j in range(count(keys, f"{key}.block")):
        yield from expand(RESNET, f"{name}.resnets.{j}.", f"{key}.block.{j}.")


def config(tensors: Tensors, base: Config) -> dict[str, Any]:
    """What the shapes of a VAE say of its config; its scale and shift no shape can."""
    levels, groups = count(tensors, "encoder.down_blocks"), known(base, "norm_num_groups")
    names = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(levels)]
    return {
        "in_channels": size(tensors, "encoder.conv_in.weight", 1),
        "out_channels": size(tensors, "decoder.conv_out.weight", 0),
        "latent_channels": size(tensors, "decoder.conv_in.weight", 1),
        "block_out_channels": [multiple(tensors, name, 0, groups, GROUPS) for name in names],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": count(tensors, "encoder.down_blocks.0.resnets"),
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
    }
