"""Names of SD3's and SD3.5's MMDiT as Stability AI publishes it: joint blocks, fused q, k and v."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from eri_runtime.weights.published_keys.parts import (
    Entry,
    Form,
    K,
    Q,
    Table,
    V,
    count_numbered,
    expand,
)

OUTER: Table = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": ("final_layer.adaLN_modulation.1", Form.SWAPPED),
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
# the text is not used after the last block, so there only its norm is modulated
LAST_BLOCK: Table = {
    **BLOCK,
    "norm1_context.linear": ("context_block.adaLN_modulation.1", Form.SWAPPED),
}


def entries(keys: Collection[str]) -> Iterator[Entry]:
    """Yields every entry of the transformer; `keys` are its published or diffusers names."""
    yield Entry("pos_embed.pos_embed", "pos_embed", Form.WHOLE)
    yield from expand(OUTER)
    last = (count_numbered(keys, "joint_blocks") or count_numbered(keys, "transformer_blocks")) - 1
    for i in range(last + 1):
        table = BLOCK if i < last else LAST_BLOCK
        yield from expand(table, f"transformer_blocks.{i}.", f"joint_blocks.{i}.")
