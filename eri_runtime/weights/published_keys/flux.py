"""Names of Flux as Black Forest Labs publishes it: blocks with fused q, k, v and MLP."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from eri_runtime.weights.published_keys.parts import (
    Entry,
    Form,
    K,
    Q,
    Rows,
    Table,
    V,
    count_numbered,
    expand,
)

OUTER: Table = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "norm_out.linear": ("final_layer.adaLN_modulation.1", Form.SWAPPED),
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
# `linear1` is q, k, v and an MLP of four times their width: seven equal blocks of rows
SINGLE: Table = {
    "norm.linear": "modulation.lin",
    "attn.to_q": ("linear1", Rows(0, 1, of=7)),
    "attn.to_k": ("linear1", Rows(1, 2, of=7)),
    "attn.to_v": ("linear1", Rows(2, 3, of=7)),
    "proj_mlp": ("linear1", Rows(3, 7, of=7)),
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out": "linear2",
}

# XLabs' LoRAs name the attention processors instead of the layers
XLABS_DOUBLE: Table = {
    "attn.to_q": ("processor.qkv_lora1", Q),
    "attn.to_k": ("processor.qkv_lora1", K),
    "attn.to_v": ("processor.qkv_lora1", V),
    "attn.to_out.0": "processor.proj_lora1",
    "attn.add_q_proj": ("processor.qkv_lora2", Q),
    "attn.add_k_proj": ("processor.qkv_lora2", K),
    "attn.add_v_proj": ("processor.qkv_lora2", V),
    "attn.to_add_out": "processor.proj_lora2",
}
XLABS_SINGLE: Table = {
    "attn.to_q": ("processor.qkv_lora", Q),
    "attn.to_k": ("processor.qkv_lora", K),
    "attn.to_v": ("processor.qkv_lora", V),
    "proj_out": "processor.proj_lora",
}


def entries(keys: Collection[str]) -> Iterator[Entry]:
    """Yields every entry of the transformer; `keys` are its published or diffusers names."""
    yield from expand(OUTER)
    for i in range(_count_double(keys)):
        yield from expand(DOUBLE, f"transformer_blocks.{i}.", f"double_blocks.{i}.")
    for i in range(_count_single(keys)):
        yield from expand(SINGLE, f"single_transformer_blocks.{i}.", f"single_blocks.{i}.")


def xlabs_entries(keys: Collection[str]) -> Iterator[Entry]:
    """Yields the entries of the layers that XLabs' LoRAs change, for the same `keys`."""
    for i in range(_count_double(keys)):
        yield from expand(XLABS_DOUBLE, f"transformer_blocks.{i}.", f"double_blocks.{i}.")
    for i in range(_count_single(keys)):
        yield from expand(XLABS_SINGLE, f"single_transformer_blocks.{i}.", f"single_blocks.{i}.")


def _count_double(keys: Collection[str]) -> int:
    """Returns the number of double blocks."""
    return count_numbered(keys, "double_blocks") or count_numbered(keys, "transformer_blocks")


def _count_single(keys: Collection[str]) -> int:
    """Returns the number of single blocks."""
    return count_numbered(keys, "single_blocks") or count_numbered(
        keys, "single_transformer_blocks"
    )
