"""ONNX Runtime's own operators, written out in ONNX's by their documentation.

A graph for CUDA runs on the CPU then, in another implementation of the same formulas.
"""

from __future__ import annotations

import onnx_ir as ir

from eri_export.graphs.passes.node_builder import Emitter

OWN = {"com.microsoft", "com.ms.internal.nhwc"}
LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def write_out(model: ir.Model) -> set[str]:
    """Replaces every operator of ONNX Runtime's own, in place; returns their names."""
    found = [node for node in model.graph if node.domain]
    assert {node.domain for node in found} <= OWN
    for node in found:
        emit = Emitter(model.graph, node.outputs[0].name)
        outputs = DEFINITIONS[node.op_type](emit, node)
        old = [node.outputs[index] for index in outputs]
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], emit.nodes, old, list(outputs.values())
        )
    for domain in OWN:
        model.opset_imports.pop(domain, None)
    return {node.op_type for node in found}


def attribute(node, name):
    return node.attributes[name].value


def conv(emit, node):
    """The images have channels last, the weights ONNX's order."""
    x, *weights = node.inputs
    attributes = {name: each.value for name, each in node.attributes.items()}
    y = emit("Conv", emit("Transpose", x, perm=FIRST), *weights, **attributes)
    return {0: emit("Transpose", y, perm=LAST)}


def group_norm(emit, node):
    """Channels last; activation 1 is SiLU."""
    x, scale, bias = node.inputs
    assert attribute(node, "channels_last") == 1
    y = emit(
        "GroupNormalization",
        emit("Transpose", x, perm=FIRST),
        scale,
        bias,
        num_groups=attribute(node, "groups"),
        epsilon=attribute(node, "epsilon"),
    )
    if attribute(node, "activation"):
        y = emit("Mul", y, emit("Sigmoid", y))
    return {0: emit("Transpose", y, perm=LAST)}


def skip_group_norm(emit, node):
    """The norm of input + skip, where skip is an image or (N, C); the second output is the sum."""
    x, scale, bias, skip = node.inputs
    if skip.producer() is None or skip.producer().op_type != "Transpose":
        skip = emit("Unsqueeze", skip, emit.integers(1, 2))
    total = emit("Add", x, skip)
    made = ir.node("GroupNorm", [total, scale, bias], node.attributes)
    made.outputs[0].name = f"{emit.name}.norm"
    return {**group_norm(emit, made), 1: total}


def gelu(approximate):
    def written(emit, node):
        return {0: emit("Gelu", emit("Add", *node.inputs), approximate=approximate)}

    return written


def bias_split_gelu(emit, node):
    """The left half of x + bias, times GELU of the right one."""
    split = ir.node(
        "Split", [emit("Add", *node.inputs)], {"axis": -1, "num_outputs": 2}, num_outputs=2
    )
    for index, half in enumerate(split.outputs):
        half.name = f"{emit.name}.half.{index}"
    emit.nodes.append(split)
    left, right = split.outputs
    return {0: emit("Mul", left, emit("Gelu", right, approximate="none"))}


def skip_layer_norm(emit, node):
    """The norm of input + skip + bias; the fourth output is the sum."""
    x, skip, scale, shift, bias = node.inputs
    total = emit("Add", emit("Add", x, skip), bias)
    epsilon = attribute(node, "epsilon")
    return {0: emit("LayerNormalization", total, scale, shift, epsilon=epsilon, axis=-1), 3: total}


DEFINITIONS = {
    "Conv": conv,
    "GroupNorm": group_norm,
    "SkipGroupNorm": skip_group_norm,
    "BiasGelu": gelu("none"),
    "FastGelu": gelu("tanh"),
    "BiasSplitGelu": bias_split_gelu,
    "SkipLayerNormalization": skip_layer_norm,
}
