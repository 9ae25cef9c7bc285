"""Writes float32 GroupNormalization out in operators that CPU engines run fast, in any layout.

    d = x - mean_g(x),   y = d·scale/sqrt(mean_g(d²) + epsilon) + bias

Wu and He 2018, arXiv 1803.08494. ONNX Runtime's CPU has no kernel for the operator and expands its
definition, with casts. OpenVINO normalises (batch, groups, rest), so every activation between two
convolutions leaves their layout and returns to it. Here the large tensors keep the shape of `x`:
the mean is taken over the pixels of each channel first, then over the channels of a group, which
are only a vector. In 16 bits the operator stays: it takes its means in float32, and the engines
that run 16 bits have a kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from eri_export.graphs.passes.node_builder import Emitter
from eri_export.graphs.passes.shape_inference import inferred, sized
from eri_export.graphs.passes.values import constant_of, dtype_of, made_by, name_of

OPERATOR = "GroupNormalization"
# back from the mean as large as x, and from the deviation: to x, and to d²
MEAN = ("Reshape", "Expand", "ReduceMean", "Reshape", "ReduceMean")
DEVIATION = ("Sqrt", "Add", "ReduceMean", "Reshape", "ReduceMean", "Mul")


class Norm(NamedTuple):
    """A group normalisation of `x` (N, C, H, W) or (N, C, T)."""

    x: ir.Value
    scale: ir.Value
    bias: ir.Value
    groups: int
    epsilon: float


def expand_group_norms(model: ir.Model) -> None:
    """Replaces every float32 GroupNormalization, in place; others stay."""
    norms = [node for node in model.graph if node.op_type == OPERATOR and _is_float32(node)]
    table = inferred(model) if norms else {}
    for node in norms:
        x, scale, bias = (value for value in node.inputs if value is not None)
        rank = len(sized(name_of(x), table))
        emit = Emitter(model.graph, name_of(node.outputs[0]))
        y = _normalised(emit, node, x, scale, bias, rank)
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], emit.nodes, node.outputs, [y]
        )


def _normalised(
    emit: Emitter, node: ir.Node, x: ir.Value, scale: ir.Value, bias: ir.Value, rank: int
) -> ir.Value:
    """Normalises (N, C, …) over the channels of a group and all further axes."""
    groups = node.attributes["num_groups"].as_int()
    (channels,) = scale.shape.numpy() if scale.shape is not None else ()
    size = channels // groups
    pixels = emit.integers(*range(2, rank))
    by_group = emit.integers(0, groups, size)
    by_channel = emit.integers(0, channels, *(1,) * (rank - 2))

    def mean(value: ir.Value) -> ir.Value:
        """(N, C, …) -> (N, groups, 1)"""
        per_channel = emit("Reshape", emit("ReduceMean", value, pixels, keepdims=1), by_group)
        return emit("ReduceMean", per_channel, emit.integers(2), keepdims=1)

    whole = emit("Expand", mean(x), emit.integers(1, 1, size))
    d = emit("Sub", x, emit("Reshape", whole, by_channel))
    epsilon = emit.constant(np.array(node.attributes["epsilon"].as_float(), np.float32))
    deviation = emit("Sqrt", emit("Add", mean(emit("Mul", d, d)), epsilon))
    gain = emit("Div", emit("Reshape", scale, emit.integers(1, groups, size)), deviation)
    scaled = emit("Mul", d, emit("Reshape", gain, by_channel))
    shift = emit("Unsqueeze", bias, emit.integers(*range(1, rank - 1)))
    return emit("Add", scaled, shift)


def _is_float32(node: ir.Node) -> bool:
    scale = node.inputs[1]
    return scale is not None and dtype_of(scale) == ir.DataType.FLOAT


def expanded_norm(total: ir.Node) -> Norm | None:
    """Returns the norm that `expand_group_norms` wrote out and ends in an Add; None for another."""
    scaled, shift = made_by(total.inputs[0], "Mul"), made_by(total.inputs[1], "Unsqueeze")
    if scaled is None or shift is None:
        return None
    d, ratio = scaled.inputs[0], made_by(scaled.inputs[1], "Reshape", "Div")
    difference = made_by(d, "Sub")
    if difference is None or ratio is None:
        return None
    (x, mean), weight = difference.inputs, made_by(ratio.inputs[0], "Reshape")
    averaged, square = made_by(mean, *MEAN), made_by(ratio.inputs[1], *DEVIATION)
    variance = made_by(ratio.inputs[1], *DEVIATION[:2])
    if weight is None or averaged is None or square is None or variance is None:
        return None
    if averaged.inputs[0] is not x or any(value is not d for value in square.inputs):
        return None
    scale, bias = weight.inputs[0], shift.inputs[0]
    by_group, epsilon = constant_of(weight.inputs[1]), constant_of(variance.inputs[1])
    if x is None or scale is None or bias is None or not by_group or not epsilon:
        return None
    return Norm(x, scale, bias, int(by_group[1]), epsilon[0])
