"""The config of SDXL's UNet, told by the shapes of its weights."""

from __future__ import annotations

from typing import Any

from eri_export.checkpoint import Config, Tensors
from eri_export.sources.keys.parts import known, quotient, size
from eri_runtime.published.parts import count

GROUPS = "groups of its norms"


def config(tensors: Tensors, base: Config) -> dict[str, Any]:
    """What the shapes of a UNet say of its config; `base` says how wide a head is."""
    levels = count(tensors, "down_blocks")
    widths = _widths(tensors, base)
    depths = [_depth(tensors, f"down_blocks.{i}") for i in range(levels)]
    middle = _depth(tensors, "mid_block")
    ups = [_depth(tensors, f"up_blocks.{i}") for i in range(levels)]
    attention = "mid_block.attentions.0"
    context = f"{attention}.transformer_blocks.0.attn2.to_k.weight"
    projection = tensors.get(f"{attention}.proj_in.weight")
    return {
        "in_channels": size(tensors, "conv_in.weight", 1),
        "out_channels": size(tensors, "conv_out.weight", 0),
        "block_out_channels": widths,
        "layers_per_block": count(tensors, "down_blocks.0.resnets"),
        "down_block_types": [f"{'CrossAttn' if depth else ''}DownBlock2D" for depth in depths],
        "up_block_types": [f"{'CrossAttn' if depth else ''}UpBlock2D" for depth in ups],
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), middle or 1],
        "attention_head_dim": _heads(tensors, base, widths),
        "cross_attention_dim": size(tensors, context, 1),
        "projection_class_embeddings_input_dim": size(tensors, "add_embedding.linear_1.weight", 1),
        "use_linear_projection": projection is not None and len(projection.shape) == 2,
        "time_cond_proj_dim": _guided(tensors, base),
    }


def _depth(tensors: Tensors, level: str) -> int:
    return count(tensors, f"{level}.attentions.0.transformer_blocks")


def _guided(tensors: Tensors, base: Config) -> int | None:
    name = "time_embedding.cond_proj.weight"
    return size(tensors, name, 1) if name in tensors else base.get("time_cond_proj_dim")


def _widths(tensors: Tensors, base: Config) -> list[int]:
    groups = known(base, "norm_num_groups")
    return [
        groups * quotient(tensors, name, 0, groups, "groups of its norms")
        for name in _firsts(tensors)
    ]


def _firsts(tensors: Tensors) -> list[str]:
    levels = range(count(tensors, "down_blocks"))
    return [f"down_blocks.{i}.resnets.0.conv1.weight" for i in levels]


def _heads(tensors: Tensors, base: Config, widths: list[int]) -> Any:
    """The heads of each level, which diffusers calls `attention_head_dim`; all of one width."""
    given, published = base["attention_head_dim"], list(base["block_out_channels"])
    if widths == published:
        return given
    heads = given if isinstance(given, list) else [given] * len(published)
    head = published[0] // known({"attention_head_dim": heads[0]}, "attention_head_dim")
    return [quotient(tensors, name, 0, head, "width of a head") for name in _firsts(tensors)]
