"""Which attention layers TensorRT must fuse into one kernel, and which it may decompose.

TensorRT fails to build a network with an attention layer that no fused kernel supports, unless that
layer is decomposable. All other layers are not decomposable, so a plan proves that they fused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

# what the fused kernel supports; measured on TensorRT for RTX 1.7: 8 and 264 are refused
TYPES = ("HALF", "BF16")
HEAD_SIZES = range(9, 257)

# a kernel in a plan's text, `layers="[ONNX Layer: NAME]..." fmha_batch=`: only fused attention
# kernels have this attribute
FUSED = re.compile(rb'layers="([^"]*)" fmha_batch=')
LAYER = re.compile(rb"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True)
class Attention:
    """An attention layer; `heads` and `head_size` are the query's, `mask` its type or None."""

    name: str
    dtype: str
    heads: int
    head_size: int
    mask: str | None
    decomposable: bool


def mark(module: Any, network: Any, *, every: bool = False) -> tuple[Attention, ...]:
    """Marks the attention layers that the fused kernel does not support as decomposable, or all."""
    return tuple(_mark(layer.attention, every) for layer in _layers(module, network))


def _layers(module: Any, network: Any) -> Iterator[Any]:
    fused = getattr(module.LayerType, "ATTENTION_INPUT", None)
    if fused is None:
        return  # an older version, which has no such layers and decomposes all
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == fused:
            layer.__class__ = module.IAttentionInputLayer  # the bindings return the base class
            yield layer


def _mark(attention: Any, every: bool) -> Attention:
    query, mask = attention.get_input(0), attention.mask
    dtype, (_, heads, _, head_size) = query.dtype.name, query.shape
    attention.decomposable = every or dtype not in TYPES or head_size not in HEAD_SIZES
    return Attention(
        name=attention.name,
        dtype=dtype,
        heads=heads,
        head_size=head_size,
        mask=None if mask is None else mask.dtype.name,
        decomposable=attention.decomposable,
    )


def fused_layers(layers: Iterable[Attention], plan: Path) -> tuple[str, ...]:
    """Returns the names of the fused layers: not decomposable, or fused by the plan's text."""
    with plan.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as text:
        fused = {name.decode() for kernel in FUSED.findall(text) for name in LAYER.findall(kernel)}
    return tuple(each.name for each in layers if not each.decomposable or each.name in fused)
