"""Replaces the eleven operators of Flux's rotary positions by RotaryEmbedding of opset 23.

    y_2i   = x_2i·cos_i - x_2i+1·sin_i
    y_2i+1 = x_2i+1·cos_i + x_2i·sin_i

Su et al. 2021, arXiv 2104.09864. The traced operators slice, rotate and concatenate copies of the
whole queries and keys in every layer. The transpose that puts heads first moves before the
rotation, and the tables have each angle once instead of twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from eri_export.graphs.passes.node_builder import Emitter
from eri_export.graphs.passes.values import constant_of, made_by, name_of, sole_user

HEADS_FIRST = (0, 2, 1, 3)
REPEATED = ("Cast", "Reshape", "Expand", "Unsqueeze")  # backwards: repeat_interleave and a cast


@dataclass(frozen=True)
class _Rotation:
    """The rotation of `x` (batch, tokens, heads, size), followed by `cast` and `transpose`.

    `cos` and `sin` are the nodes that concatenate the tables of the axes.
    """

    x: ir.Value
    cos: ir.Node
    sin: ir.Node
    cast: ir.Node | None
    transpose: ir.Node


def fuse_rotary(model: ir.Model) -> None:
    """Replaces every such group of operators before attention, in place; others stay."""
    tables: dict[ir.Node, ir.Value] = {}
    for node in list(model.graph):
        rotation = _rotation(node) if node.op_type == "Add" else None
        if rotation is None:
            continue
        emit = Emitter(model.graph, name_of(node.outputs[0]))
        for table in (rotation.cos, rotation.sin):
            if table not in tables:
                tables[table] = _without_repetition(emit, table, rotation.x)
        x = emit("Transpose", rotation.x, perm=HEADS_FIRST)
        y = emit("RotaryEmbedding", x, tables[rotation.cos], tables[rotation.sin], interleaved=1)
        if rotation.cast is not None:
            y = emit("Cast", y, to=rotation.cast.attributes["to"].as_int())
        old = rotation.transpose
        ir.convenience.replace_nodes_and_values(
            model.graph, old, [old], emit.nodes, old.outputs, [y]
        )
    model.graph.sort()  # the shared tables are inserted at their first use


def _rotation(total: ir.Node) -> _Rotation | None:
    """Returns the parts of x·cos + rotated(x)·sin; None for another sum."""
    straight, crossed = (made_by(value, "Mul") for value in total.inputs)
    if straight is None or crossed is None:
        return None
    x, rotated = straight.inputs[0], crossed.inputs[0]
    cos, sin = (_table(node.inputs[1]) for node in (straight, crossed))
    if x is None or cos is None or sin is None:
        return None
    if _before_cast(x) is not _unrotated(_before_cast(rotated)):
        return None
    after = sole_user(total.outputs[0])
    cast = after if after is not None and after.op_type == "Cast" else None
    last = after if cast is None else sole_user(cast.outputs[0])
    if last is None or last.op_type != "Transpose":
        return None
    if tuple(last.attributes["perm"].as_ints()) != HEADS_FIRST:
        return None
    return _Rotation(x, cos, sin, cast, last)


def _before_cast(value: ir.Value | None) -> ir.Value | None:
    """Returns the value before a cast to float32, or the value itself."""
    wide = made_by(value, "Cast")
    return value if wide is None else wide.inputs[0]


def _unrotated(value: ir.Value | None) -> ir.Value | None:
    """Returns the x whose pairs (a, b) are (-b, a) in `value`; None for another value."""
    joined = made_by(value, "Reshape", "Concat")
    if joined is None or len(joined.inputs) != 2 or joined.attributes["axis"].as_int() != -1:
        return None
    second = made_by(joined.inputs[0], "Unsqueeze", "Neg", "Squeeze", "Slice")
    first = made_by(joined.inputs[1], "Unsqueeze", "Squeeze", "Slice")
    if first is None or second is None or first.inputs[0] is not second.inputs[0]:
        return None
    parts = [[constant_of(each) for each in node.inputs[1:4]] for node in (first, second)]
    pairs = made_by(first.inputs[0], "Reshape")
    if pairs is None or _last_size(pairs.inputs[1]) != 2:
        return None
    return pairs.inputs[0] if parts == [[[0], [1], [-1]], [[1], [2], [-1]]] else None


def _last_size(shape: ir.Value | None) -> float | None:
    """Returns the last number of a shape, a constant or joined from its parts; None if unknown."""
    joined = made_by(shape, "Concat")
    sizes = constant_of(shape if joined is None else joined.inputs[-1])
    return sizes[-1] if sizes else None


def _table(value: ir.Value | None) -> ir.Node | None:
    """Returns the Concat of a table (tokens, size) viewed as (1, tokens, 1, size).

    Each angle is in it twice. None for another value.
    """
    outer = made_by(value, "Unsqueeze")
    inner = made_by(value, "Unsqueeze", "Unsqueeze")
    first = outer if inner is None else inner
    if outer is None or first is None:
        return None
    axes = [constant_of(node.inputs[1]) for node in (first, outer)]
    if axes != ([[0, 2]] * 2 if inner is None else [[0], [2]]):  # the optimiser merges two
        return None
    joined = made_by(first.inputs[0], "Concat")
    if joined is None or any(_repeated(part) is None for part in joined.inputs):
        return None
    return joined


def _repeated(part: ir.Value | None) -> ir.Node | None:
    """Returns the node that adds the axis along which a part of a table is repeated, or None."""
    widened, node = made_by(part, *REPEATED[:-1]), made_by(part, *REPEATED)
    if widened is None or node is None or constant_of(node.inputs[1]) not in ([2], [-1]):
        return None
    sizes = constant_of(widened.inputs[1])
    return node if sizes is not None and sizes[-1] == 2 else None


def _without_repetition(emit: Emitter, joined: ir.Node, x: ir.Value) -> ir.Value:
    """Makes the table (batch, tokens, size/2) in which each angle is once."""
    parts = [
        emit("Cast", node.inputs[0], to=ir.DataType.FLOAT)
        for node in map(_repeated, joined.inputs)
        if node is not None and node.inputs[0] is not None
    ]
    halves = emit("Concat", *parts, axis=-1)
    shape = emit("Concat", emit("Shape", x, start=0, end=1), emit("Shape", halves), axis=0)
    return emit("Expand", halves, shape)
