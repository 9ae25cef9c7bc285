"""The config of SDXL's UNet and of smaller ones, from the shapes of its weights."""

from __future__ import annotations

from typing import Any

from eri_export.checkpoints.checkpoint import Config, Tensors
from eri_export.checkpoints.config_from_shapes.shapes import known, quotient, size
from eri_runtime.weights import count_numbered

GROUPS = "groups of its norms"
PROJECTION, CONTEXT = ".attentions.0.proj_in.weight", ".attn2.to_k.weight"


def config(tensors: Tensors, base: Config) -> dict[str, Any]:
    """Returns what shapes tell of a UNet's config; `base` gives the width of a head.

    Smaller ones than SDXL's (SSD-1B, Vega, KOALA) have other depths on the way up, and less or
    nothing in the middle.
    """
    levels = range(count_numbered(tensors, "down_blocks"))
    widths = _widths(tensors, base)
    downs = [_depths(tensors, f"down_blocks.{i}") for i in levels]
    ups = [_depths(tensors, f"up_blocks.{i}") for i in levels]
    middle = _depth(tensors, "mid_block", 0)
    mirrored = ups == [_longer(depths) for depths in downs[::-1]]
    projection = next((each for name, each in tensors.items() if name.endswith(PROJECTION)), None)
    return {
        "in_channels": size(tensors, "conv_in.weight", 1),
        "out_channels": size(tensors, "conv_out.weight", 0),
        "block_out_channels": widths,
        "layers_per_block": _merged([_layers(tensors, i) for i in levels]),
        "down_block_types": [f"{'CrossAttn' if any(each) else ''}DownBlock2D" for each in downs],
        "up_block_types": [f"{'CrossAttn' if any(each) else ''}UpBlock2D" for each in ups],
        "mid_block_type": _middle_type(tensors, base, middle),
        "transformer_layers_per_block": [
            *(_merged(each) or 1 for each in downs[:-1]),
            middle or _merged(downs[-1]) or 1,
        ],
        "reverse_transformer_layers_per_block": (
            base.get("reverse_transformer_layers_per_block")
            if mirrored
            else [_merged(each) or 1 for each in ups]
        ),
        "attention_head_dim": _heads(tensors, base, widths),
        "cross_attention_dim": size(tensors, _context(tensors), 1),
        "projection_class_embeddings_input_dim": size(tensors, "add_embedding.linear_1.weight", 1),
        "use_linear_projection": projection is not None and len(projection.shape) == 2,
        "time_cond_proj_dim": _guidance_embedding(tensors, base),
    }


def _layers(tensors: Tensors, level: int) -> int:
    return count_numbered(tensors, f"down_blocks.{level}.resnets")


def _depths(tensors: Tensors, level: str) -> list[int]:
    """Returns the number of transformer blocks beside each resnet of a level."""
    resnets = count_numbered(tensors, f"{level}.resnets")
    return [_depth(tensors, level, layer) for layer in range(resnets)]


def _depth(tensors: Tensors, level: str, layer: int) -> int:
    return count_numbered(tensors, f"{level}.attentions.{layer}.transformer_blocks")


def _longer(depths: list[int]) -> list[int]:
    """Returns the depths of a mirrored level on the way up, which has one resnet more."""
    return [*depths, *depths[-1:]]


def _merged(values: list[int]) -> Any:
    """Returns the number that all are, else the list; 0 for none."""
    return values if len(set(values)) > 1 else next(iter(values), 0)


def _middle_type(tensors: Tensors, base: Config, depth: int) -> Any:
    """Returns the type of the middle: with attention, with one resnet alone, or nothing."""
    if depth:
        return base.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    return "UNetMidBlock2D" if count_numbered(tensors, "mid_block.resnets") else None


def _context(tensors: Tensors) -> str:
    """Returns the name of a weight that is as wide as the text."""
    return next((name for name in tensors if name.endswith(CONTEXT)), f"a weight {CONTEXT}")


def _guidance_embedding(tensors: Tensors, base: Config) -> int | None:
    name = "time_embedding.cond_proj.weight"
    return size(tensors, name, 1) if name in tensors else base.get("time_cond_proj_dim")


def _widths(tensors: Tensors, base: Config) -> list[int]:
    groups = known(base, "norm_num_groups")
    return [
        groups * quotient(tensors, name, 0, groups, GROUPS) for name in _first_convolutions(tensors)
    ]


def _first_convolutions(tensors: Tensors) -> list[str]:
    """Returns the name of each level's first convolution, whose rows are the level's width."""
    levels = range(count_numbered(tensors, "down_blocks"))
    return [f"down_blocks.{i}.resnets.0.conv1.weight" for i in levels]


def _heads(tensors: Tensors, base: Config, widths: list[int]) -> Any:
    """Returns the number of heads per level, which diffusers calls `attention_head_dim`.

    All heads have one width, that of `base`.
    """
    base_heads, base_widths = base["attention_head_dim"], list(base["block_out_channels"])
    if widths == base_widths:
        return base_heads
    heads = base_heads if isinstance(base_heads, list) else [base_heads] * len(base_widths)
    head = base_widths[0] // known({"attention_head_dim": heads[0]}, "attention_head_dim")
    names = _first_convolutions(tensors)
    return [quotient(tensors, name, 0, head, "width of a head") for name in names]
