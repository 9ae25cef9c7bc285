"""Replaces ArgMax over token ids by TopK of keys that no two positions share.

    key[i] = ids[i]·T - i,   argmax(ids) = argmax(key)

CLIP's pooled state is that of the first end token, the largest id, which also fills the rest of a
prompt. ONNX Runtime's CUDA provider has no ArgMax of integers, so the ids would cross to the CPU
and back. It has TopK, whose choice among equal values differs between engines; keys have none.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from eri_export.graphs.passes.node_builder import Emitter
from eri_export.graphs.passes.shape_inference import inferred, sized
from eri_export.graphs.passes.values import made_by, name_of

INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


def expand_first_largest(model: ir.Model) -> None:
    """Replaces ArgMax of integers (B, T) along a fixed T by TopK, in place; others stay."""
    nodes = [node for node in model.graph if node.op_type == "ArgMax"]
    table = inferred(model) if nodes else {}
    for node in nodes:
        ids = node.inputs[0]
        if ids is None or not _is_first_of_row(node):
            continue
        inferred_ids = table[name_of(ids)]
        tokens = sized(name_of(ids), table)[-1]
        if inferred_ids.dtype not in INTEGERS or inferred_ids.rank != 2 or tokens is None:
            continue
        emit = Emitter(model.graph, name_of(node.outputs[0]))
        wide = _wide(emit, ids, inferred_ids.dtype)
        spread = emit("Mul", wide, emit.integers(tokens))
        key = emit("Sub", spread, emit.constant(np.arange(tokens, dtype=np.int64)))
        first = emit("Squeeze", _position(emit, key), emit.integers(1))
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], emit.nodes, node.outputs, [first]
        )


def _is_first_of_row(node: ir.Node) -> bool:
    """Whether an ArgMax removes the last axis and takes the first of equal values."""
    axis, keeps = node.attributes.get_int("axis", 0), node.attributes.get_int("keepdims", 1)
    return axis in (-1, 1) and not keeps and not node.attributes.get_int("select_last_index", 0)


def _wide(emit: Emitter, ids: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Returns the ids as int64, from before the tracer's cast to int32 if there is one."""
    narrowed = made_by(ids, "Cast")
    if narrowed is not None and narrowed.inputs[0] is not None:
        source = narrowed.inputs[0]
        if source.dtype == ir.DataType.INT64:
            return source
    return ids if dtype == ir.DataType.INT64 else emit("Cast", ids, to=ir.DataType.INT64)


def _position(emit: Emitter, key: ir.Value) -> ir.Value:
    """(B, T) -> (B, 1), the position of each row's largest key."""
    node = ir.node("TopK", [key, emit.integers(1)], {"axis": 1}, num_outputs=2)
    values, indices = node.outputs
    name = f"{emit.name}.{len(emit.nodes)}"
    node.name, values.name, indices.name = name, f"{name}.value", name
    emit.nodes.append(node)
    return indices
