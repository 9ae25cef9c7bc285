"""Replaces a Split into unequal parts by a Slice for each part.

    Split(x, [a, b, c]) = x[0:a], x[a:a+b], x[a+b:a+b+c]

ONNX Runtime's kernel for unequal parts reads its table of outputs from host memory. A captured
CUDA graph reads that memory again in each replay, when another run may have written over it:
replays of two sizes in turns gave wrong results on 1.31.1
(https://github.com/microsoft/onnxruntime/pull/32121). Slices read no host memory.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import onnx_ir as ir

from eri_export.graphs.passes.node_builder import Emitter
from eri_export.graphs.passes.values import constant_of, name_of


def slice_unequal_parts(model: ir.Model) -> None:
    """Replaces every Split into parts that may have different sizes, in place; others stay."""
    for node in [node for node in model.graph if node.op_type == "Split" and not node.domain]:
        x, sizes = (*node.inputs, None)[:2]
        if x is None or sizes is None or len(set(constant_of(sizes) or (0, 1))) == 1:
            continue
        _slice(model.graph, node, x, sizes)


def _slice(graph: ir.Graph, node: ir.Node, x: ir.Value, sizes: ir.Value) -> None:
    emit = Emitter(graph, name_of(node.outputs[0]))
    axis = emit.integers(node.attributes.get_int("axis", 0))
    parts = [emit("Slice", x, start, end, axis) for start, end in _ends(emit, sizes, node)]
    ir.convenience.replace_nodes_and_values(graph, node, [node], emit.nodes, node.outputs, parts)


def _ends(emit: Emitter, sizes: ir.Value, node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    """Returns where each part begins and ends, (1,) int64 each."""
    numbers = constant_of(sizes)
    if numbers is not None:
        ends = accumulate(map(int, numbers), initial=0)
        return list(pairwise([emit.integers(end) for end in ends]))
    each = [emit("Gather", sizes, emit.integers(i)) for i in range(len(node.outputs))]
    return list(
        pairwise(
            accumulate(each, lambda end, size: emit("Add", end, size), initial=emit.integers(0))
        )
    )
