"""Flux as Black Forest Labs publishes it: double and single blocks with fused q, k, v and MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from eri_export.checkpoint import Config, Tensors
from eri_export.sources.keys.parts import (
    CONFIG_FIX,
    Entry,
    Table,
    count,
    expand,
    quotient,
    rows,
    size,
    swapped,
)
from eri_runtime.errors import CheckpointError

Q, K, V = (rows(i, i + 1, of=3) for i in range(3))

ENDS: Table = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "norm_out.linear": ("final_layer.adaLN_modulation.1", swapped),
    "proj_out": "final_layer.linear",
}
DOUBLE: Table = {
    "norm1.linear": "img_mod.lin",
    "attn.to_q": ("img_attn.qkv", Q),
    "attn.to_k": ("img_attn.qkv", K),
    "attn.to_v": ("img_attn.qkv", V),
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.to_out.0": "img_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "norm1_context.linear": "txt_mod.lin",
    "attn.add_q_proj": ("txt_attn.qkv", Q),
    "attn.add_k_proj": ("txt_attn.qkv", K),
    "attn.add_v_proj": ("txt_attn.qkv", V),
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_add_out": "txt_attn.proj",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
# `linear1` is q, k, v and an MLP four times as wide, so seven equal blocks of rows
SINGLE: Table = {
    "norm.linear": "modulation.lin",
    "attn.to_q": ("linear1", rows(0, 1, of=7)),
    "attn.to_k": ("linear1", rows(1, 2, of=7)),
    "attn.to_v": ("linear1", rows(2, 3, of=7)),
    "proj_mlp": ("linear1", rows(3, 7, of=7)),
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out": "linear2",
}


def entries(keys: Tensors) -> Iterator[Entry]:
    """The whole transformer."""
    yield from expand(ENDS)
    for i in range(count(keys, "double_blocks")):
        yield from expand(DOUBLE, f"transformer_blocks.{i}.", f"double_blocks.{i}.")
    for i in range(count(keys, "single_blocks")):
        yield from expand(SINGLE, f"single_transformer_blocks.{i}.", f"single_blocks.{i}.")


def config(tensors: Tensors, base: Config) -> dict[str, Any]:
    """What the shapes of a Flux say of its config; `base` how a head is shared among the axes."""
    head = size(tensors, "transformer_blocks.0.attn.norm_q.weight", 0)
    _check_axes(tensors, base, head)
    return {
        "num_layers": count(tensors, "transformer_blocks"),
        "num_single_layers": count(tensors, "single_transformer_blocks"),
        "in_channels": size(tensors, "x_embedder.weight", 1),
        "attention_head_dim": head,
        "num_attention_heads": quotient(tensors, "x_embedder.weight", 0, head, "head size"),
        "joint_attention_dim": size(tensors, "context_embedder.weight", 1),
        "pooled_projection_dim": size(tensors, "time_text_embed.text_embedder.linear_1.weight", 1),
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in tensors,
    }


def _check_axes(tensors: Tensors, base: Config, head: int) -> None:
    axes = list(base["axes_dims_rope"])
    if sum(axes) != head:
        name = "transformer_blocks.0.attn.norm_q.weight"
        raise CheckpointError(
            f"{tensors[name].file}: {name}",
            got=f"heads of {head}",
            expected=f"{sum(axes)}, as the axes {axes} of rotary positions need",
            fix=CONFIG_FIX,
        )
