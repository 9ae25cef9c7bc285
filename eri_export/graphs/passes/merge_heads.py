"""Gives Attention its inputs as (batch, tokens, heads·size), without transposes around it.

    (B, heads, tokens, size) -> (B, tokens, heads·size)

ONNX Runtime's flash kernels read the second form. For the first, its CUDA provider transposes
queries, keys, values and output in every layer, beside the graph's own four Transposes.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from eri_export.graphs.passes.node_builder import Emitter
from eri_export.graphs.passes.shape_inference import Inferred, inferred
from eri_export.graphs.passes.values import name_of

SWAP = (0, 2, 1, 3)  # heads first <-> tokens first


def merge_heads(model: ir.Model) -> None:
    """Rewrites every Attention of four axes whose numbers of heads are known, in place."""
    layers = [node for node in model.graph if node.op_type == "Attention" and not node.domain]
    table = inferred(model) if layers else {}
    known: dict[ir.Value, ir.Value] = {}
    for node in layers:
        heads = [_heads(value, table) for value in node.inputs[:3]]
        past = [value for value in node.inputs[4:] if value is not None]
        if None in heads or past or any(output.uses() for output in node.outputs[1:]):
            continue
        _merge(model.graph, node, heads, known, table)
    model.graph.sort()  # what several layers share is inserted at its first use


def _heads(value: ir.Value | None, table: Mapping[str, Inferred]) -> int | None:
    """Returns the heads of a value (B, heads, tokens, size); None for another form."""
    shape = None if value is None else table[name_of(value)].shape
    return shape[1] if shape is not None and len(shape) == 4 else None


def _merge(
    graph: ir.Graph,
    node: ir.Node,
    heads: list[int | None],
    known: dict[ir.Value, ir.Value],
    table: Mapping[str, Inferred],
) -> None:
    old = node.outputs[0]
    emit = Emitter(graph, name_of(old))
    tokens_first = _TokensFirst(emit, known, table)
    merged = [tokens_first.merged(value) for value in node.inputs[:3] if value is not None]
    attributes = {name: each.value for name, each in node.attributes.items()}
    attributes |= {"q_num_heads": heads[0], "kv_num_heads": heads[1]}
    mask = [value for value in node.inputs[3:4] if value is not None]
    y = emit("Attention", *merged, *mask, **attributes)
    ends = _ends(old)
    if ends is None:
        split = emit("Reshape", y, emit.integers(0, 0, heads[0] or 0, -1))
        new, last = emit("Transpose", split, perm=SWAP), [node]
        ir.convenience.replace_nodes_and_values(graph, node, last, emit.nodes, [old], [new])
        return
    graph.insert_before(node, emit.nodes)
    for end in ends:
        ir.convenience.replace_all_uses_with(end.outputs[0], y)


def _ends(output: ir.Value) -> list[ir.Node] | None:
    """Returns the Reshapes that merge the heads of an output; None if it is used otherwise."""
    ends: list[ir.Node] = []
    for use in output.uses():
        swap = use.node
        if swap.op_type != "Transpose" or tuple(swap.attributes["perm"].as_ints()) != SWAP:
            return None
        ends += [each.node for each in swap.outputs[0].uses()]
    plain = all(each.op_type == "Reshape" and not _is_output(each) for each in ends)
    return ends if ends and plain and not output.is_graph_output() else None


def _is_output(node: ir.Node) -> bool:
    return node.outputs[0].is_graph_output()


class _TokensFirst:
    """Follows values (B, heads, tokens, size) back to where their tokens came first."""

    def __init__(
        self, emit: Emitter, known: dict[ir.Value, ir.Value], table: Mapping[str, Inferred]
    ) -> None:
        self.emit, self.known, self.table = emit, known, table

    def merged(self, value: ir.Value) -> ir.Value:
        """Returns the value as (B, tokens, heads·size)."""
        shape = self.table[name_of(value)].shape or (None,) * 4
        whole = None not in (shape[1], shape[3])
        return self._merge(self.of(value), (shape[1] or 0) * (shape[3] or 0) if whole else -1)

    def of(self, value: ir.Value) -> ir.Value:
        """Returns the value as (B, tokens, heads, size); several layers may read it."""
        if value not in self.known:
            self.known[value] = self._of(value)
        return self.known[value]

    def _of(self, value: ir.Value) -> ir.Value:
        node, emit = value.producer(), self.emit
        x = None if node is None else node.inputs[0]
        if node is None or x is None:
            return emit("Transpose", value, perm=SWAP)
        attributes = {name: each.value for name, each in node.attributes.items()}
        inputs = [each for each in node.inputs if each is not None]
        match node.op_type:
            case "Transpose" if tuple(attributes["perm"]) == SWAP:
                return x
            case "RMSNormalization" if attributes.get("axis", -1) in (-1, 3):
                return emit(node.op_type, self.of(x), *inputs[1:], **attributes)
            case "Cast":
                return emit("Cast", self.of(x), **attributes)
            case "Concat" if attributes["axis"] in (2, -2):
                return emit("Concat", *map(self.of, inputs), axis=1)
            case "RotaryEmbedding" if (heads := _heads(x, self.table)) is not None:
                attributes["num_heads"] = heads
                turned = emit(node.op_type, self.merged(x), *inputs[1:], **attributes)
                size = (self.table[name_of(x)].shape or ())[3]
                return emit("Reshape", turned, emit.integers(0, 0, heads, size or -1))
        return emit("Transpose", value, perm=SWAP)

    def _merge(self, value: ir.Value, width: int) -> ir.Value:
        """(B, tokens, heads, size) -> (B, tokens, width), without splitting them before."""
        split = value.producer()
        if split is not None and split.op_type == "Reshape" and split.inputs[0] is not None:
            whole = split.inputs[0]
            if split in self.emit.nodes or self._is_split(whole, value):
                return whole
        return self.emit("Reshape", value, self.emit.integers(0, 0, width))

    def _is_split(self, whole: ir.Value, value: ir.Value) -> bool:
        """Whether a Reshape only splits the last axis of `whole` (B, tokens, heads·size)."""
        before, after = (self.table.get(name_of(each)) for each in (whole, value))
        if before is None or after is None or before.shape is None or after.shape is None:
            return False
        if (before.rank, after.rank) != (3, 4) or None in after.shape[2:]:
            return False
        return before.shape[2] == (after.shape[2] or 0) * (after.shape[3] or 0)
