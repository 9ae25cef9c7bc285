"""Writes nearest-neighbour upsampling by whole factors as Unsqueeze, Expand and Reshape.

    y[n, c, i, j] = x[n, c, ⌊i/a⌋, ⌊j/b⌋]

ONNX Runtime's CUDA provider has no bfloat16 Resize, but these three in every type. They only copy,
so every bit is Resize's. On CPUs they are slower: with the convolution after it, ONNX Runtime took
1.1 to 1.25 and OpenVINO 1.1 to 1.2 of the time. So only the CUDA form of a bfloat16 graph has them.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from eri_export.graphs.passes.node_builder import Emitter
from eri_export.graphs.passes.shape_inference import inferred, sized
from eri_export.graphs.passes.values import constant_of, name_of

# attributes of a Resize that copies pixel ⌊i/a⌋ to i; ONNX's defaults are others
COPIES = {
    "mode": "nearest",
    "nearest_mode": "floor",
    "coordinate_transformation_mode": "asymmetric",
}


def expand_upsampling(model: ir.Model, types: Collection[ir.DataType] = ()) -> None:
    """Replaces every such Resize of (N, C, H, W), in place; others stay.

    `types` are the element types to do it for; default: all.
    """
    found = [(node, factors) for node in model.graph if (factors := _factors(node)) is not None]
    table = inferred(model) if found else {}
    for node, factors in found:
        x = node.inputs[0]
        if x is None or (types and table[name_of(x)].dtype not in types):
            continue
        emit = Emitter(model.graph, name_of(node.outputs[0]))
        y = _repeated(emit, x, factors, sized(name_of(x), table))
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], emit.nodes, node.outputs, [y]
        )


def _factors(node: ir.Node) -> tuple[int, int] | None:
    """Returns how often rows and columns are repeated; None for another node or another Resize."""
    if node.op_type != "Resize" or len(node.inputs) != 3:
        return None
    attributes = {name: node.attributes.get(name) for name in COPIES}
    if any(each is None or each.value != COPIES[name] for name, each in attributes.items()):
        return None
    scales = constant_of(node.inputs[2])
    if scales is None or len(scales) != 4 or scales[:2] != [1, 1]:
        return None
    rows, columns = scales[2:]
    whole = min(rows, columns) >= 1 and rows == int(rows) and columns == int(columns)
    return (int(rows), int(columns)) if whole else None


def _repeated(
    emit: Emitter, x: ir.Value, factors: tuple[int, int], sizes: tuple[int | None, ...]
) -> ir.Value:
    """(N, C, H, W) -> (N, C, H, a, W, b) -> (N, C, aH, bW)"""
    rows, columns = factors
    split = emit("Unsqueeze", x, emit.integers(3, 5))
    copies = emit("Expand", split, emit.integers(1, 1, 1, rows, 1, columns))
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        n, c, height, width = known
        return emit("Reshape", copies, emit.integers(n, c, rows * height, columns * width))
    shape = emit("Mul", emit("Shape", x), emit.integers(1, 1, rows, columns))
    return emit("Reshape", copies, shape)
