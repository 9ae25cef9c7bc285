"""Which attention layers become one fused kernel, and which may be taken apart.

TensorRT fails to build a network with an attention layer that no fused kernel serves, unless that
layer may be decomposed. The others are built without that leave, so a plan says that they fused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

# what the fused kernel serves; measured on TensorRT for RTX 1.7: 8 and 264 are refused
TYPES = ("HALF", "BF16")
HEAD_SIZES = range(9, 257)

# a kernel in a plan's text, `layers="[ONNX Layer: NAME]..." fmha_batch=`: only fused attention
# kernels are given a batch of their own
FUSED = re.compile(rb'layers="([^"]*)" fmha_batch=')
LAYER = re.compile(rb"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True)
class Attention:
    """A layer of the network; `heads` and `head_size` are the query's, `mask` a type or None."""

    name: str
    dtype: str
    heads: int
    head_size: int
    mask: str | None
    decomposable: bool


def mark(module: Any, network: Any, *, every: bool = False) -> tuple[Attention, ...]:
    """Let the attention layers be taken apart that the fused kernel cannot serve, or all."""
    return tuple(_marked(layer.attention, every) for layer in _layers(module, network))


def _layers(module: Any, network: Any) -> Iterator[Any]:
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == module.LayerType.ATTENTION_INPUT:
            layer.__class__ = module.IAttentionInputLayer  # the bindings give the base class
            yield layer


def _marked(attention: Any, every: bool) -> Attention:
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
    """The names of the layers that fused: those that had to, and those the plan's text says did."""
    with plan.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as text:
        said = {name.decode() for kernel in FUSED.findall(text) for name in LAYER.findall(kernel)}
    return tuple(each.name for each in layers if not each.decomposable or each.name in said)
