"""The config of an MMDiT, from the shapes of its weights."""

from __future__ import annotations

from typing import Any

from eri_export.checkpoints.checkpoint import Config, Tensors
from eri_export.checkpoints.config_from_shapes.shapes import known, quotient, side, size
from eri_runtime.weights import count_numbered


def config(tensors: Tensors, base: Config) -> dict[str, Any]:
    """Returns what shapes tell of an MMDiT's config; without a norm `base` gives the head size."""
    layers = count_numbered(tensors, "transformer_blocks")
    norm = "transformer_blocks.0.attn.norm_q.weight"
    head = size(tensors, norm, 0) if norm in tensors else known(base, "attention_head_dim")
    patch = size(tensors, "pos_embed.proj.weight", 2)
    dual = [i for i in range(layers) if f"transformer_blocks.{i}.attn2.to_q.weight" in tensors]
    return {
        "num_layers": layers,
        "in_channels": size(tensors, "pos_embed.proj.weight", 1),
        "out_channels": quotient(tensors, "proj_out.weight", 0, patch**2, "area of a patch"),
        "patch_size": patch,
        "pos_embed_max_size": side(tensors, "pos_embed.pos_embed", 1),
        "attention_head_dim": head,
        "num_attention_heads": quotient(tensors, "pos_embed.proj.weight", 0, head, "head size"),
        "caption_projection_dim": size(tensors, "context_embedder.weight", 0),
        "joint_attention_dim": size(tensors, "context_embedder.weight", 1),
        "pooled_projection_dim": size(tensors, "time_text_embed.text_embedder.linear_1.weight", 1),
        "qk_norm": "rms_norm" if norm in tensors else None,
        "dual_attention_layers": dual,
    }
