"""Computes self-attention by com.microsoft's MultiHeadAttention, which never stores q·kᵀ.

    y = softmax(scale·q·kᵀ)·v

Its CPU kernel goes through keys and values in blocks (Dao et al. 2022, arXiv:2205.14135), so its
memory grows with the tokens and not with their square. ONNX Runtime's kernel for Attention stores
the products of all heads: 805 MB for 6 heads and two rows of 4096 tokens. Cross-attention keeps it:
its keys are few, and there it is the faster one.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from eri_export.graphs.passes.node_builder import MICROSOFT, Emitter
from eri_export.graphs.passes.values import name_of


def fuse_attention(model: ir.Model) -> None:
    """Replaces every self-attention without a mask that `merge_heads` has rewritten, in place."""
    for node in list(model.graph):
        if node.op_type != "Attention" or node.domain or not _is_flash(node):
            continue
        (y,) = node.outputs[:1]
        emit = Emitter(model.graph, f"{name_of(y)}.flash")
        attributes = {"num_heads": node.attributes["q_num_heads"].as_int()}
        scale = node.attributes.get("scale")
        scaled = {} if scale is None else {"scale": scale.as_float()}
        inputs = [value for value in node.inputs if value is not None]
        flash = emit(f"{MICROSOFT}::MultiHeadAttention", *inputs, **attributes, **scaled)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], emit.nodes, [y], [flash])
        model.opset_imports[MICROSOFT] = 1


def _is_flash(node: ir.Node) -> bool:
    """Whether the kernel computes what this node does, with less memory."""
    heads = [node.attributes.get(name) for name in ("q_num_heads", "kv_num_heads")]
    if None in heads or len({each.as_int() for each in heads if each is not None}) > 1:
        return False
    further = [value for value in node.inputs[3:] if value is not None]
    changed = any(
        node.attributes[name].value
        for name in ("is_causal", "softcap", "qk_matmul_output_mode")
        if name in node.attributes
    )
    return not further and not changed and _is_self_attention(node)


def _is_self_attention(node: ir.Node) -> bool:
    """Whether queries and keys are made of the same tokens."""
    queries, keys = node.inputs[:2]
    sources = {value for value in _sources(queries) if not _is_given(value)}
    return any(value in sources for value in _sources(keys))


def _sources(value: ir.Value | None) -> Iterator[ir.Value]:
    """Yields a value and those that it was made of, through the first input of each node."""
    while value is not None:
        yield value
        node = value.producer()
        value = node.inputs[0] if node is not None and node.inputs else None


def _is_given(value: ir.Value) -> bool:
    return value.producer() is None
