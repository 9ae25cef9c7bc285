"""SDXL's UNet as Stability publishes it: flat lists of blocks where diffusers nests them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from eri_export.checkpoint import Config, Tensors
from eri_export.sources.keys.parts import (
    Entry,
    Table,
    count,
    expand,
    known,
    quotient,
    size,
)

GROUPS = "groups of its norms"

ENDS: Table = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET: Table = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# the modules of a transformer have one name in both layouts
ATTENTION: Table = {name: name for name in ("norm", "proj_in", "proj_out")}
TRANSFORMER: Table = {
    name: name
    for name in (
        *("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"),
        *(f"attn{i}.{end}" for i in (1, 2) for end in ("to_q", "to_k", "to_v", "to_out.0")),
    )
}


def entries(keys: Tensors) -> Iterator[Entry]:
    """The whole UNet; where a level ends is told by its down- or upsampler."""
    yield from expand(ENDS)
    yield from _level_entries(keys, "input_blocks", "down_blocks", "downsamplers", first=1)
    yield from expand(RESNET, "mid_block.resnets.0.", "middle_block.0.")
    yield from _attention(keys, "mid_block.attentions.0.", "middle_block.1.")
    yield from expand(RESNET, "mid_block.resnets.1.", "middle_block.2.")
    yield from _level_entries(keys, "output_blocks", "up_blocks", "upsamplers", first=0)


def _level_entries(
    keys: Tensors, flat: str, nested: str, sampler: str, *, first: int
) -> Iterator[Entry]:
    level, layer = 0, 0
    for i in range(first, count(keys, flat)):
        block, home = f"{flat}.{i}.", f"{nested}.{level}"
        if f"{block}0.in_layers.0.weight" in keys:
            yield from expand(RESNET, f"{home}.resnets.{layer}.", f"{block}0.")
        if f"{block}1.norm.weight" in keys:
            yield from _attention(keys, f"{home}.attentions.{layer}.", f"{block}1.")
        layer += 1
        for end in ("0.op", "1.conv", "2.conv"):
            if f"{block}{end}.weight" in keys:
                yield from expand({f"{sampler}.0.conv": end}, f"{home}.", block)
                level, layer = level + 1, 0


def _attention(keys: Tensors, name: str, key: str) -> Iterator[Entry]:
    yield from expand(ATTENTION, name, key)
    for i in range(count(keys, f"{key}transformer_blocks")):
        block = f"transformer_blocks.{i}."
        yield from expand(TRANSFORMER, name + block, key + block)


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
