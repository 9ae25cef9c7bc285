"""The configs of CLIP and T5 text encoders, from the shapes of their weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from eri_export.checkpoints.checkpoint import Config, Tensors
from eri_export.checkpoints.config_from_shapes.shapes import known, quotient, size
from eri_export.checkpoints.stored_tensors import Span, StoredTensor
from eri_runtime.weights import count_numbered

TOKENS = "embeddings.token_embedding.weight"


@dataclass(frozen=True)
class Identity(StoredTensor):
    """A square float32 identity matrix that no file holds; its empty span names a file anyway."""

    def chunks(self) -> Iterator[torch.Tensor]:
        """Yields all rows as one flat tensor."""
        yield torch.eye(self.shape[0]).view(-1)


def with_identity_projection(tensors: Tensors) -> Tensors:
    """Returns the tensors of a CLIP with an identity as its projection, as SD3 uses CLIP-L.

    SD3's own code does not project CLIP-L's pooled state, even if the file holds OpenAI's
    projection. diffusers' folders store an identity for that.
    """
    name, width = "text_projection.weight", clip_width(tensors)
    file = next(iter(tensors.values())).file
    return {**tensors, name: Identity(name, "F32", (width, width), (Span(file, 0, 0),))}


def clip_width(tensors: Tensors) -> int:
    """Returns the width of a CLIP text encoder, which distinguishes CLIP-L from CLIP-G."""
    return size(tensors, _clip_stem(tensors) + TOKENS, 1)


def clip_config(tensors: Tensors, base: Config) -> dict[str, Any]:
    """Returns what shapes tell of a CLIP's config; `base` gives the width of a head.

    The config keeps the end-of-text id of `base`.
    """
    stem = _clip_stem(tensors)
    head = known(base, "hidden_size") // known(base, "num_attention_heads")
    projection = "text_projection.weight"
    return {
        "vocab_size": size(tensors, stem + TOKENS, 0),
        "hidden_size": clip_width(tensors),
        "max_position_embeddings": size(tensors, f"{stem}embeddings.position_embedding.weight", 0),
        "num_hidden_layers": count_numbered(tensors, f"{stem}encoder.layers"),
        "intermediate_size": size(tensors, f"{stem}encoder.layers.0.mlp.fc1.weight", 0),
        "num_attention_heads": quotient(tensors, stem + TOKENS, 1, head, "head size"),
        "projection_dim": size(tensors, projection, 0)
        if projection in tensors
        else known(base, "projection_dim"),
    }


def _clip_stem(tensors: Tensors) -> str:
    """Returns the prefix of the names that older transformers wrote, else nothing."""
    return "text_model." if f"text_model.{TOKENS}" in tensors else ""


def t5_config(tensors: Tensors, _base: Config) -> dict[str, Any]:
    """Returns what shapes tell of a T5 encoder's config: all but its activation."""
    attention = "encoder.block.0.layer.0.SelfAttention"
    bias = f"{attention}.relative_attention_bias.weight"
    tokens = "shared.weight" if "shared.weight" in tensors else "encoder.embed_tokens.weight"
    heads = size(tensors, bias, 1)
    return {
        "vocab_size": size(tensors, tokens, 0),
        "d_model": size(tensors, tokens, 1),
        "num_layers": count_numbered(tensors, "encoder.block"),
        "num_heads": heads,
        "d_kv": quotient(tensors, f"{attention}.q.weight", 0, heads, "number of heads"),
        "relative_attention_num_buckets": size(tensors, bias, 0),
        "d_ff": size(tensors, "encoder.block.0.layer.1.DenseReluDense.wo.weight", 1),
    }
