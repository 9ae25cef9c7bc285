"""SD3's and SD3.5's MMDiT as Stability publishes it: joint blocks with fused q, k and v."""

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
    rows,
    side,
    size,
    swapped,
    whole,
)

Q, K, V = (rows(i, i + 1, of=3) for i in range(3))

ENDS: Table = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": ("final_layer.adaLN_modulation.1", swapped),
    "proj_out": "final_layer.linear",
}
BLOCK: Table = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "attn.to_q": ("x_block.attn.qkv", Q),
    "attn.to_k": ("x_block.attn.qkv", K),
    "attn.to_v": ("x_block.attn.qkv", V),
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.to_q": ("x_block.attn2.qkv", Q),
    "attn2.to_k": ("x_block.attn2.qkv", K),
    "attn2.to_v": ("x_block.attn2.qkv", V),
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.add_q_proj": ("context_block.attn.qkv", Q),
    "attn.add_k_proj": ("context_block.attn.qkv", K),
    "attn.add_v_proj": ("context_block.attn.qkv", V),
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_add_out": "context_block.attn.proj",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
# nothing reads the text after the last block, so only its norm is modulated there
LAST: Table = {
    **BLOCK,
    "norm1_context.linear": ("context_block.adaLN_modulation.1", swapped),
}


def entries(keys: Tensors) -> Iterator[Entry]:
    """The whole transformer."""
    yield Entry("pos_embed.pos_embed", "pos_embed", whole)
    yield from expand(ENDS)
    last = count(keys, "joint_blocks") - 1
    for i in range(last + 1):
        table = BLOCK if i < last else LAST
        yield from expand(table, f"transformer_blocks.{i}.", f"joint_blocks.{i}.")


def config(tensors: Tensors, base: Config) -> dict[str, Any]:
    """What the shapes of an MMDiT say of its config; `base` the head size where no norm does."""
    layers = count(tensors, "transformer_blocks")
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
