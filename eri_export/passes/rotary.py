"""Flux's rotary positions in one operator, RotaryEmbedding of opset 23, instead of eleven.

    y_2i   = x_2i·cos_i - x_2i+1·sin_i
    y_2i+1 = x_2i+1·cos_i + x_2i·sin_i

Su et al. 2021, arXiv 2104.09864. Written out, halves of pairs are sliced, turned and joined again
as copies of the whole queries and keys in every layer. Heads are put first before it instead of
after, and the tables lose their repetition: each angle is there once.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from eri_export.passes.emit import Emitter
from eri_export.passes.values import constant_of, made_by, name_of, sole_user

HEADS_FIRST = (0, 2, 1, 3)
REPEATED = ("Cast", "Reshape", "Expand", "Unsqueeze")  # backwards: repeat_interleave, narrowed


@dataclass(frozen=True)
class _Turn:
    """`x` (batch, tokens, heads, size) turned, then `cast`, then `transposed`.

    `cos` and `sin` join the tables of the axes to one.
    """

    x: ir.Value
    cos: ir.Node
    sin: ir.Node
    cast: ir.Node | None
    transposed: ir.Node


def fuse_rotary(model: ir.Model) -> None:
    """Replace every such group of operators before attention; others stay."""
    tables: dict[ir.Node, ir.Value] = {}
    for node in list(model.graph):
        turn = _turn(node) if node.op_type == "Add" else None
        if turn is None:
            continue
        emit = Emitter(model.graph, name_of(node.outputs[0]))
        for table in (turn.cos, turn.sin):
            if table not in tables:
                tables[table] = _once(emit, table, turn.x)
        x = emit("Transpose", turn.x, perm=HEADS_FIRST)
        y = emit("RotaryEmbedding", x, tables[turn.cos], tables[turn.sin], interleaved=1)
        if turn.cast is not None:
            y = emit("Cast", y, to=turn.cast.attributes["to"].as_int())
        old = turn.transposed
        ir.convenience.replace_nodes_and_values(
            model.graph, old, [old], emit.nodes, old.outputs, [y]
        )
    model.graph.sort()  # tables are made where the first is turned


def _turn(total: ir.Node) -> _Turn | None:
    """What x·cos + turned(x)·sin is made of; None for another sum."""
    straight, crossed = (made_by(value, "Mul") for value in total.inputs)
    if straight is None or crossed is None:
        return None
    x, turned = straight.inputs[0], crossed.inputs[0]
    cos, sin = (_table(node.inputs[1]) for node in (straight, crossed))
    if x is None or cos is None or sin is None or _same(x) is not _turned(_same(turned)):
        return None
    after = sole_user(total.outputs[0])
    cast = after if after is not None and after.op_type == "Cast" else None
    last = after if cast is None else sole_user(cast.outputs[0])
    if last is None or last.op_type != "Transpose":
        return None
    if tuple(last.attributes["perm"].as_ints()) != HEADS_FIRST:
        return None
    return _Turn(x, cos, sin, cast, last)


def _same(value: ir.Value | None) -> ir.Value | None:
    """The value before it was widened."""
    wide = made_by(value, "Cast")
    return value if wide is None else wide.inputs[0]


def _turned(value: ir.Value | None) -> ir.Value | None:
    """The x whose pairs (a, b) are (-b, a) in `value`; None for another value."""
    joined = made_by(value, "Reshape", "Concat")
    if joined is None or len(joined.inputs) != 2 or joined.attributes["axis"].as_int() != -1:
        return None
    second = made_by(joined.inputs[0], "Unsqueeze", "Neg", "Squeeze", "Slice")
    first = made_by(joined.inputs[1], "Unsqueeze", "Squeeze", "Slice")
    if first is None or second is None or first.inputs[0] is not second.inputs[0]:
        return None
    parts = [[constant_of(each) for each in node.inputs[1:4]] for node in (first, second)]
    pairs = made_by(first.inputs[0], "Reshape")
    sizes = None if pairs is None else made_by(pairs.inputs[1], "Concat")
    if pairs is None or sizes is None or constant_of(sizes.inputs[-1]) != [2]:
        return None
    return pairs.inputs[0] if parts == [[[0], [1], [-1]], [[1], [2], [-1]]] else None


def _table(value: ir.Value | None) -> ir.Node | None:
    """What joins the (tokens, size) behind (1, tokens, 1, size); each number is there twice."""
    outer = made_by(value, "Unsqueeze")
    inner = made_by(value, "Unsqueeze", "Unsqueeze")
    if outer is None or inner is None:
        return None
    if (constant_of(inner.inputs[1]), constant_of(outer.inputs[1])) != ([0], [2]):
        return None
    joined = made_by(inner.inputs[0], "Concat")
    if joined is None or any(_repeated(part) is None for part in joined.inputs):
        return None
    return joined


def _repeated(part: ir.Value | None) -> ir.Node | None:
    """The node that gives a part of a table a last axis, along which it is repeated."""
    widened, node = made_by(part, *REPEATED[:-1]), made_by(part, *REPEATED)
    if widened is None or node is None or constant_of(node.inputs[1]) not in ([2], [-1]):
        return None
    sizes = constant_of(widened.inputs[1])
    return node if sizes is not None and sizes[-1] == 2 else None


def _once(emit: Emitter, joined: ir.Node, x: ir.Value) -> ir.Value:
    """The table (batch, tokens, size/2), before it was repeated."""
    parts = [
        emit("Cast", node.inputs[0], to=ir.DataType.FLOAT)
        for node in map(_repeated, joined.inputs)
        if node is not None and node.inputs[0] is not None
    ]
    halves = emit("Concat", *parts, axis=-1)
    shape = emit("Concat", emit("Shape", x, start=0, end=1), emit("Shape", halves), axis=0)
    return emit("Expand", halves, shape)
