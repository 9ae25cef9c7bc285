"""Names of CLIP-G in OpenCLIP, which SDXL's single files use, and of T5 in llama.cpp's."""

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

OPEN_CLIP_OUTER: Table = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": ("text_projection", Form.TRANSPOSED),
}
OPEN_CLIP_LAYER: Table = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    **{
        f"self_attn.{name}_proj.{suffix}": (f"attn.in_proj_{suffix}", part)
        for name, part in zip("qkv", (Q, K, V), strict=True)
        for suffix in ("weight", "bias")
    },
}


def open_clip_entries(keys: Collection[str]) -> Iterator[Entry]:
    """Yields every entry of CLIP-G; `keys` are the published names."""
    yield from expand(OPEN_CLIP_OUTER)
    for i in range(count_numbered(keys, "transformer.resblocks")):
        layer, block = f"text_model.encoder.layers.{i}.", f"transformer.resblocks.{i}."
        yield from expand(OPEN_CLIP_LAYER, layer, block)


LLAMA_T5_OUTER: Table = {
    "shared.weight": "token_embd.weight",
    "encoder.final_layer_norm.weight": "enc.output_norm.weight",
}
LLAMA_T5_BLOCK: Table = {
    "layer.0.SelfAttention.q.weight": "attn_q.weight",
    "layer.0.SelfAttention.k.weight": "attn_k.weight",
    "layer.0.SelfAttention.v.weight": "attn_v.weight",
    "layer.0.SelfAttention.o.weight": "attn_o.weight",
    "layer.0.SelfAttention.relative_attention_bias.weight": "attn_rel_b.weight",
    "layer.0.layer_norm.weight": "attn_norm.weight",
    "layer.1.DenseReluDense.wi_0.weight": "ffn_gate.weight",
    "layer.1.DenseReluDense.wi_1.weight": "ffn_up.weight",
    "layer.1.DenseReluDense.wo.weight": "ffn_down.weight",
    "layer.1.layer_norm.weight": "ffn_norm.weight",
}


def llama_t5_entries(keys: Collection[str]) -> Iterator[Entry]:
    """Yields every entry of a T5 encoder; `keys` are llama.cpp's names.

    The decoder of a whole T5 gets names that begin with `decoder.`, as transformers' do.
    """
    yield from expand(LLAMA_T5_OUTER)
    for i in range(count_numbered(keys, "enc.blk")):
        yield from expand(LLAMA_T5_BLOCK, f"encoder.block.{i}.", f"enc.blk.{i}.")
    for key in keys:
        if key.startswith("dec."):
            yield Entry(f"decoder.{key.removeprefix('dec.')}", key, Form.WHOLE)
    yield Entry("lm_head.weight", "output.weight", Form.WHOLE)
