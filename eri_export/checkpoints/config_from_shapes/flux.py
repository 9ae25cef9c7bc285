"""The config of a Flux transformer, from the shapes of its weights."""

from __future__ import annotations

from typing import Any

from eri_export.checkpoints.checkpoint import Config, Tensors
from eri_export.checkpoints.config_from_shapes.shapes import CONFIG_FIX, quotient, size
from eri_runtime.errors import CheckpointError
from eri_runtime.weights import count_numbered


def config(tensors: Tensors, base: Config) -> dict[str, Any]:
    """Returns what shapes tell of a Flux's config; `base` gives how axes share a head's size."""
    head = size(tensors, "transformer_blocks.0.attn.norm_q.weight", 0)
    _check_axes(tensors, base, head)
    return {
        "num_layers": count_numbered(tensors, "transformer_blocks"),
        "num_single_layers": count_numbered(tensors, "single_transformer_blocks"),
        "in_channels": size(tensors, "x_embedder.weight", 1),
        "attention_head_dim": head,
        "num_attention_heads": quotient(tensors, "x_embedder.weight", 0, head, "head size"),
        "joint_attention_dim": size(tensors, "context_embedder.weight", 1),
        "pooled_projection_dim": size(tensors, "time_text_embed.text_embedder.linear_1.weight", 1),
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in tensors,
    }


def _check_axes(tensors: Tensors, base: Config, head: int) -> None:
    """Raises `CheckpointError` unless the axes of rotary positions add up to a head's size."""
    axes = list(base["axes_dims_rope"])
    if sum(axes) != head:
        name = "transformer_blocks.0.attn.norm_q.weight"
        raise CheckpointError(
            f"{tensors[name].file}: {name}",
            got=f"heads of {head}",
            expected=f"{sum(axes)}, as the axes {axes} of rotary positions need",
            fix=CONFIG_FIX,
        )
