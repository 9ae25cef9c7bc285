"""The config of a Flux, told by the shapes of its weights."""

from __future__ import annotations

from typing import Any

from eri_export.checkpoint import Config, Tensors
from eri_export.sources.keys.parts import CONFIG_FIX, quotient, size
from eri_runtime.errors import CheckpointError
from eri_runtime.published.parts import count


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
