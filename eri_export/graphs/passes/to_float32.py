"""Makes the float32 twin of a 16-bit graph: the same nodes in the same order, in float32.

ONNX Runtime's CPU has no bfloat16 kernels, so the twin of a bfloat16 graph is compared instead. It
shows that the graph is correct; it does not show the rounding of 16-bit arithmetic.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

NARROW = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def widen(model: ir.Model) -> None:
    """Turns every 16-bit type into float32, in place; external weights keep theirs and are cast."""
    for value in list(model.graph.initializers.values()):
        if value.dtype not in NARROW:
            continue
        if isinstance(value.const_value, ir.ExternalTensor):
            _cast(model.graph, value)
        elif value.const_value is not None:
            value.dtype = ir.DataType.FLOAT
            value.const_value = _widened(value.const_value)
    for node in model.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            node.attributes[name] = _attribute(attribute)


def _cast(graph: ir.Graph, weight: ir.Value) -> None:
    """Casts a weight to float32 for all its readers."""
    node = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT})
    (wide,) = node.outputs
    wide.name = f"{weight.name}_wide"
    ir.convenience.replace_all_uses_with(weight, wide)
    node.replace_input_with(0, weight)
    graph.insert_before(graph[0], node)


def _attribute(attribute: ir.Attr) -> ir.Attr:
    if attribute.name in ("to", "dtype") and ir.DataType(attribute.as_int()) in NARROW:
        return ir.AttrInt64(attribute.name, ir.DataType.FLOAT)
    if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in NARROW:
        return ir.AttrTensor(attribute.name, _widened(attribute.as_tensor()))
    return attribute


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
