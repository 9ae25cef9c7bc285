"""Moves the bias of a linear layer into the operator that reads the layer.

    com.microsoft BiasGelu(y, b)      = gelu(y + b)
    com.microsoft FastGelu(y, b)      = gelu_tanh(y + b)
    com.microsoft BiasSplitGelu(y, b) = l·gelu(r),  (l, r) = split(y + b)
    com.microsoft SkipLayerNormalization(y, s, scale, shift, b) = norm(y + s + b), …, y + s + b

ONNX Runtime's CUDA provider adds a bias in a kernel of its own, which reads or writes the whole
product once more. In these operators it costs no memory traffic.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from eri_export.graphs.passes.node_builder import MICROSOFT, Emitter
from eri_export.graphs.passes.values import dtype_of, made_by, name_of, sole_user

SPLIT_WIDTHS = (2560, 5120, 6144, 10240)  # that BiasSplitGelu has kernels for
SPLIT_KINDS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


class Biased(NamedTuple):
    """The sum of a linear layer's product and its bias (width,)."""

    product: ir.Value
    bias: ir.Value

    @property
    def width(self) -> int | None:
        """The size of the last axis; None if it is not known."""
        shape = self.bias.shape
        return shape[0] if shape is not None and isinstance(shape[0], int) else None


def fuse_biases(model: ir.Model) -> None:
    """Fuses the biases before GELU, GEGLU and layer normalisation, in place; others stay."""
    for node in list(model.graph):
        made = {"Gelu": _gelu, "Mul": _geglu, "LayerNormalization": _norm}.get(node.op_type)
        if made is not None and not node.domain and made(model.graph, node):
            model.opset_imports[MICROSOFT] = 1


def biased(value: ir.Value | None) -> Biased | None:
    """Returns the product and bias of a linear layer with one reader; None for other values."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.op_type != "Add" or sole_user(value) is None:
        return None
    for product, bias in (node.inputs, node.inputs[::-1]):
        if product is None or bias is None or made_by(product, "MatMul") is None:
            continue
        if bias.is_initializer() and bias.shape is not None and len(bias.shape) == 1:
            return Biased(product, bias)
    return None


def _gelu(graph: ir.Graph, node: ir.Node) -> bool:
    """Fuses gelu(y + b)."""
    layer = biased(node.inputs[0])
    if layer is None:
        return False
    exact = node.attributes.get_string("approximate", "none") == "none"
    if exact and node.outputs[0].uses() and _is_gate(node.outputs[0]):
        return False
    emit = Emitter(graph, name_of(node.outputs[0]))
    y = emit(f"{MICROSOFT}::{'BiasGelu' if exact else 'FastGelu'}", *layer)
    _replace(graph, node, emit, y)
    return True


def _is_gate(value: ir.Value) -> bool:
    user = sole_user(value)
    return user is not None and user.op_type == "Mul"


def _geglu(graph: ir.Graph, node: ir.Node) -> bool:
    """Fuses l·gelu(r) of the halves of y + b."""
    gate = made_by(node.inputs[1], "Gelu")
    left = None if node.inputs[0] is None else node.inputs[0].producer()
    right = None if gate is None else made_by(gate.inputs[0], "Split")
    if gate is None or right is None or left is not right or len(right.outputs) != 2:
        return False
    halves = (node.inputs[0], gate.inputs[0]) == tuple(right.outputs)
    exact = gate.attributes.get_string("approximate", "none") == "none"
    last = right.attributes.get_int("axis", 0) in (2, -1) and len(right.inputs) == 1
    layer = biased(right.inputs[0])
    if not (halves and exact and last) or layer is None:
        return False
    if layer.width not in SPLIT_WIDTHS or dtype_of(layer.bias) not in SPLIT_KINDS:
        return False
    if any(sole_user(value) is None for value in (*right.outputs, *gate.outputs)):
        return False
    emit = Emitter(graph, name_of(node.outputs[0]))
    _replace(graph, node, emit, emit(f"{MICROSOFT}::BiasSplitGelu", *layer))
    return True


def _norm(graph: ir.Graph, node: ir.Node) -> bool:
    """Fuses norm(y + b + s), where s + y + b is also read elsewhere."""
    total = None if node.inputs[0] is None else node.inputs[0].producer()
    if total is None or total.op_type != "Add" or node.attributes.get_int("axis", -1) != -1:
        return False
    scale, shift = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if any(each is None or not each.is_initializer() for each in (scale, shift)):
        return False
    if node.outputs[0].is_graph_output() or total.outputs[0].is_graph_output():
        return False
    for skip, value in (total.inputs, total.inputs[::-1]):
        layer = biased(value)
        if layer is None or skip is None or scale is None or skip.is_initializer():
            continue
        fused = ir.node(
            "SkipLayerNormalization",
            [layer.product, skip, scale, shift, layer.bias],
            {"epsilon": node.attributes.get_float("epsilon", 1e-5)},
            domain=MICROSOFT,
            num_outputs=4,
        )
        fused.name = f"{name_of(node.outputs[0])}.skip"
        for index, output in enumerate(fused.outputs):
            output.name = f"{fused.name}.{index}" if index in (0, 3) else ""
        old = [node.outputs[0], total.outputs[0]]
        new = [fused.outputs[0], fused.outputs[3]]
        graph.insert_before(node, fused)
        for before, after in zip(old, new, strict=True):
            ir.convenience.replace_all_uses_with(before, after)
        graph.remove(node)
        graph.remove(total, safe=True)
        return True
    return False


def _replace(graph: ir.Graph, node: ir.Node, emit: Emitter, new: ir.Value) -> None:
    ir.convenience.replace_nodes_and_values(graph, node, [node], emit.nodes, node.outputs, [new])
