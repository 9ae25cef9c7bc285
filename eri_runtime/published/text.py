"""CLIP-G in OpenCLIP's names, as SDXL's single files have it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from eri_runtime.published.parts import Entry, Form, K, Q, Table, V, count, expand

OPEN_CLIP_ENDS: Table = {
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
    """CLIP-G in an SDXL file."""
    yield from expand(OPEN_CLIP_ENDS)
    for i in range(count(keys, "transformer.resblocks")):
        home, block = f"text_model.encoder.layers.{i}.", f"transformer.resblocks.{i}."
        yield from expand(OPEN_CLIP_LAYER, home, block)
