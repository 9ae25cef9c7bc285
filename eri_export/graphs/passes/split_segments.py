"""Splits a graph into segments over one weights file, for computers too small for all weights.

The nodes keep their order. Each cut is near the point that balances the bytes of weights, where
the fewest activations cross. Values computed from weights alone, such as a
transposed matrix, are computed again in each segment that reads them. All nodes, names and types
stay the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import onnx_ir as ir

from eri_export.graphs.passes.shape_inference import Inferred, inferred
from eri_export.graphs.passes.values import name_of
from eri_runtime.bundle import ComponentSpec, SegmentSpec
from eri_runtime.errors import ExportError

PARTS = 8
LEAST = 64  # nodes of a segment: about half a block of a transformer
SLACK = 1 / 8  # of a segment's bytes: how far a cut may move so that fewer activations cross
SMALL = 1 / 64  # the weight of a vector or a shape that crosses a cut; an activation weighs 1


@dataclass(frozen=True)
class Uses:
    """A graph's nodes in the order in which they are cut, with its values by name.

    `nodes` are those that depend on the graph's inputs, `copied` has the node of each value that
    depends on weights alone, and `table` the types and shapes of all values.
    """

    model: ir.Model
    nodes: tuple[ir.Node, ...]
    copied: Mapping[str, ir.Node]
    table: Mapping[str, Inferred]

    @cached_property
    def last(self) -> Mapping[str, int]:
        """The index of the last node that reads each value; for graph outputs one past the end."""
        read = {name: i for i, node in enumerate(self.nodes) for name in read_by(node)}
        outputs = {name_of(output): len(self.nodes) for output in self.model.graph.outputs}
        return {**read, **outputs}

    def copies(self, nodes: Sequence[ir.Node]) -> list[ir.Node]:
        """Returns the copied nodes that `nodes` read, directly or indirectly, in order."""
        needed: dict[str, ir.Node] = {}

        def visit(node: ir.Node) -> None:
            for name in read_by(node):
                if name in self.copied and name not in needed:
                    visit(self.copied[name])
                    needed[name] = self.copied[name]

        for node in nodes:
            visit(node)
        return list(dict.fromkeys(needed.values()))

    def weights(self, nodes: Sequence[ir.Node]) -> dict[str, int]:
        """Returns the bytes of each weight that `nodes` and their copied nodes read."""
        initializers, nbytes = self.model.graph.initializers, dict[str, int]()
        for node in (*self.copies(nodes), *nodes):
            for name in read_by(node):
                tensor = initializers[name].const_value if name in initializers else None
                if isinstance(tensor, ir.ExternalTensor):
                    nbytes[name] = tensor.nbytes
        return nbytes


def write_segments(model: ir.Model, graph: Path, spec: ComponentSpec) -> ComponentSpec:
    """Saves the segments of `model`, whose weights are bound, and returns `spec` with them.

    They are written next to `graph`, in the folder of the weights, as ONNX Runtime reads weights
    from no other folder.
    """
    folder, segments = spec.graph.rpartition("/")[0], list[SegmentSpec]()
    for index, part in enumerate(cut(model)):
        name = f"segment-{index:02}.onnx"
        ir.save(part, graph.with_name(name))
        segments.append(segment_spec(part, f"{folder}/{name}"))
    return dataclasses.replace(spec, segments=tuple(segments))


def segment_spec(part: ir.Model, graph: str) -> SegmentSpec:
    """Describes a part of a graph, whose file in the bundle is `graph`."""
    return SegmentSpec(
        graph=graph,
        inputs=tuple(name_of(value) for value in part.graph.inputs),
        outputs=tuple(name_of(value) for value in part.graph.outputs),
        weights=tuple(
            name
            for name, value in part.graph.initializers.items()
            if isinstance(value.const_value, ir.ExternalTensor)
        ),
    )


def cut(model: ir.Model, parts: int = PARTS, least: int = LEAST) -> Iterator[ir.Model]:
    """Yields at most `parts` graphs, of `least` nodes or more, that compute `model` in order.

    `model` stays unchanged. Raises `ExportError` for a node with a subgraph, which no recipe has.
    """
    uses = uses_of(model)
    ends = [*cuts(uses, parts, least), len(uses.nodes)]
    for begin, end in zip([0, *ends], ends, strict=False):
        yield _segment(uses, begin, end)


def read_by(node: ir.Node) -> Iterator[str]:
    """Yields the names of the values that a node reads."""
    return (value.name for value in node.inputs if value is not None and value.name)


def uses_of(model: ir.Model) -> Uses:
    """Divides the nodes of `model` into those to cut and those to copy."""
    graph, copied, kept = model.graph, dict[str, ir.Node](), list[ir.Node]()
    for node in graph:
        if any(each.type == ir.AttributeType.GRAPH for each in node.attributes.values()):
            raise ExportError(node.name, got=node.op_type, expected="a node without a graph")
        if all(name in graph.initializers or name in copied for name in read_by(node)):
            copied.update({name_of(output): node for output in node.outputs})
        else:
            kept.append(node)
    return Uses(model, tuple(_late(graph, kept)), copied, inferred(model))


def _late(graph: ir.Graph, nodes: Sequence[ir.Node]) -> Iterator[ir.Node]:
    """Yields `nodes` with each Cast of an input, as of 16-bit LoRAs, moved before its first reader.

    An input is then read by the segment that uses it.
    """
    inputs = {value.name for value in graph.inputs}
    casts = {
        name_of(node.outputs[0]): node
        for node in nodes
        if node.op_type == "Cast" and inputs.issuperset(read_by(node))
    }
    waiting = dict(casts)
    for node in nodes:
        if node in casts.values():
            continue
        yield from (waiting.pop(name) for name in read_by(node) if name in waiting)
        yield node
    yield from waiting.values()


# Where to cut


def cuts(uses: Uses, parts: int, least: int = LEAST) -> list[int]:
    """Returns the indices of the nodes at which a segment begins, without the first."""
    count = max(1, min(parts, len(uses.nodes) // least))
    before, crossing = list(_bytes_before(uses)), list(_crossing(uses))
    share, starts = before[-1] / count, [0]
    for index in range(1, count):
        last = len(uses.nodes) - (count - index)
        off = {i: abs(before[i] - index * share) for i in range(starts[-1] + 1, last + 1)}
        near = {i: (crossing[i], nbytes) for i, nbytes in off.items() if nbytes <= SLACK * share}
        starts.append(min(near, key=near.__getitem__) if near else min(off, key=off.__getitem__))
    return starts[1:]


def _bytes_before(uses: Uses) -> Iterator[int]:
    """Yields for every place the bytes of the weights that are read before it."""
    seen, total = set[str](), 0
    yield total
    for node in uses.nodes:
        weights = uses.weights([node])
        total += sum(nbytes for name, nbytes in weights.items() if name not in seen)
        seen |= weights.keys()
        yield total


def _crossing(uses: Uses) -> Iterator[float]:
    """Returns for every place how many activations cross it: computed before, read after."""
    changes = [0.0] * (len(uses.nodes) + 2)
    for index, node in enumerate(uses.nodes):
        for output in node.outputs:
            if (name := output.name) and name in uses.last:
                rank = uses.table[name].rank
                weight = SMALL if rank is not None and rank < 3 else 1.0
                changes[index + 1] += weight
                changes[uses.last[name] + 1] -= weight
    return accumulate(changes[:-1])


# Making a segment


def _segment(uses: Uses, begin: int, end: int) -> ir.Model:
    """Returns the nodes from `begin` to `end` as a model."""
    own = uses.nodes[begin:end]
    names = (name_of(output) for node in own for output in node.outputs if output.name)
    return part_of(uses, own, [name for name in names if uses.last.get(name, -1) >= end])


def part_of(uses: Uses, own: Sequence[ir.Node], results: Iterable[str]) -> ir.Model:
    """Returns a model of the nodes `own`, in their order, that outputs the values `results`."""
    whole = uses.model.graph
    values, inputs = dict[str, ir.Value](), list[ir.Value]()
    constants, nodes = list[ir.Value](), list[ir.Node]()

    def value(name: str) -> ir.Value:
        if name not in values and name in whole.initializers:
            values[name] = _copied(whole.initializers[name])
            constants.append(values[name])
        elif name not in values:
            values[name] = _typed(ir.Value(name=name), uses, name)
            inputs.append(values[name])
        return values[name]

    for node in (*uses.copies(own), *own):
        operands = [None if each is None else value(name_of(each)) for each in node.inputs]
        nodes.append(_copied_node(node, operands))
        values |= {name_of(output): output for output in nodes[-1].outputs if output.name}
    outputs = [_typed(values[name], uses, name) for name in results]
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=constants,
        opset_imports=dict(whole.opset_imports),
        name=whole.name,
    )
    return ir.Model(graph, ir_version=uses.model.ir_version)


def _copied_node(node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Node:
    """Returns a copy of the node with other values of the same names."""
    outputs = [ir.Value(name=output.name) for output in node.outputs]
    attributes = [ir.Attr(each.name, each.type, each.value) for each in node.attributes.values()]
    return ir.Node(
        node.domain,
        node.op_type,
        inputs,
        attributes,
        overload=node.overload,
        outputs=outputs,
        name=node.name,
    )


def _copied(constant: ir.Value) -> ir.Value:
    return ir.Value(
        name=constant.name,
        shape=constant.shape,
        type=constant.type,
        const_value=constant.const_value,
    )


def _typed(value: ir.Value, uses: Uses, name: str) -> ir.Value:
    """Sets a value's type, and its shape: as stated by the whole graph, else as inferred."""
    graph, known = uses.model.graph, uses.table[name]
    stated = next((v for v in (*graph.inputs, *graph.outputs) if v.name == name), None)
    value.type = ir.TensorType(known.dtype)
    if stated is not None:
        value.shape = stated.shape
    elif known.shape is not None:
        value.shape = ir.Shape(list(known.shape))
    return value
