"""Replaces the seven operators of MMDiT's and T5's norms by RMSNormalization of opset 23.

    y = x/sqrt(mean(x²) + epsilon)·scale

Zhang and Sennrich 2019, arXiv 1910.07467.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from eri_export.graphs.passes.node_builder import Emitter
from eri_export.graphs.passes.values import constant_of, made_by, name_of, sole_user


class _Match(NamedTuple):
    x: ir.Value
    epsilon: float


def fuse_rms_norms(model: ir.Model) -> None:
    """Replaces every such group of operators over the last axis, in place; others stay."""
    for node in list(model.graph):
        for index in (0, 1):
            scale = node.inputs[1 - index] if node.op_type == "Mul" else None
            match = _match(node.inputs[index]) if _is_vector(scale) else None
            if match is None or scale is None:
                continue
            emit = Emitter(model.graph, name_of(node.outputs[0]))
            attributes = {"axis": -1, "epsilon": match.epsilon, "stash_type": ir.DataType.FLOAT}
            y = emit("RMSNormalization", match.x, scale, **attributes)
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], emit.nodes, node.outputs, [y]
            )
            break


def _match(normalised: ir.Value | None) -> _Match | None:
    """Returns what is normalised, in its own type or in float32 and cast back; None for no norm."""
    back = made_by(normalised, "Cast")
    product = made_by(normalised if back is None else back.inputs[0], "Mul")
    if product is None or sole_user(product.outputs[0]) is None:
        return None
    for index in (0, 1):
        x, root = product.inputs[index], product.inputs[1 - index]
        epsilon = _epsilon(root, x)
        wide = made_by(x, "Cast")
        if x is None or epsilon is None or (wide is None) != (back is None):
            continue
        inner = x if wide is None else wide.inputs[0]
        if inner is not None:
            return _Match(inner, epsilon)
    return None


def _epsilon(root: ir.Value | None, x: ir.Value | None) -> float | None:
    """Returns epsilon if `root` is 1/sqrt(mean(x²) + epsilon), else None."""
    total = made_by(root, "Reciprocal", "Sqrt", "Add")
    mean = None if total is None else made_by(total.inputs[0], "ReduceMean")
    power = None if mean is None else made_by(mean.inputs[0], "Pow")
    if total is None or mean is None or power is None or power.inputs[0] is not x:
        return None
    epsilon = constant_of(total.inputs[1])
    squared = constant_of(power.inputs[1]) == [2.0]
    last = constant_of(mean.inputs[1]) == [-1] and mean.attributes.get_int("keepdims", 1) == 1
    return epsilon[0] if squared and last and epsilon is not None and len(epsilon) == 1 else None


def _is_vector(scale: ir.Value | None) -> bool:
    """Returns whether a value can be the weight of a norm: an initialiser of rank 1."""
    return (
        scale is not None
        and scale.is_initializer()
        and scale.shape is not None
        and len(scale.shape) == 1
    )
