"""A graph in parts over one weights file, for a computer that has memory for a part of the weights.

The nodes are cut in their order, where the parts' weights weigh about the same and, near there,
where the fewest activations cross. What is computed from weights alone, such as a transposed
matrix, is computed again in each part that reads it. Every node, name and type stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import onnx_ir as ir

from eri_export.passes.inferred import Inferred, inferred
from eri_export.passes.values import name_of
from eri_runtime.errors import ExportError
from eri_runtime.spec import ComponentSpec, SegmentSpec

PARTS = 8
LEAST = 64  # nodes of a part: about half a block of a transformer
SLACK = 1 / 8  # of a part's bytes: how far from its place a cut may be, so that less crosses
SMALL = 1 / 64  # what a vector or a shape that crosses counts beside an activation


@dataclass(frozen=True)
class Uses:
    """A graph in the order in which it is cut; all values are by name.

    `nodes` are those that read what the graph is given, `copied` makes the values that depend on
    weights alone, and `table` has the types and shapes of all.
    """

    model: ir.Model
    nodes: tuple[ir.Node, ...]
    copied: Mapping[str, ir.Node]
    table: Mapping[str, Inferred]

    @cached_property
    def last(self) -> Mapping[str, int]:
        """The last node that reads a value, one past the end for an output of the graph."""
        read = {name: i for i, node in enumerate(self.nodes) for name in read_by(node)}
        outputs = {name_of(output): len(self.nodes) for output in self.model.graph.outputs}
        return {**read, **outputs}

    def copies(self, nodes: Sequence[ir.Node]) -> list[ir.Node]:
        """What `nodes` read, directly or not, of the nodes that are copied, in order."""
        found: dict[str, ir.Node] = {}

        def visit(node: ir.Node) -> None:
            for name in read_by(node):
                if name in self.copied and name not in found:
                    visit(self.copied[name])
                    found[name] = self.copied[name]

        for node in nodes:
            visit(node)
        return list(dict.fromkeys(found.values()))

    def weights(self, nodes: Sequence[ir.Node]) -> dict[str, int]:
        """Bytes of the tensors of the weights file that `nodes`, and what they copy, read."""
        initializers, found = self.model.graph.initializers, dict[str, int]()
        for node in (*self.copies(nodes), *nodes):
            for name in read_by(node):
                tensor = initializers[name].const_value if name in initializers else None
                if isinstance(tensor, ir.ExternalTensor):
                    found[name] = tensor.nbytes
        return found


def write_segments(model: ir.Model, graph: Path, spec: ComponentSpec) -> ComponentSpec:
    """Save the parts of `model`, whose weights are bound, beside its `graph`; `spec` with them.

    They lie in the folder of the weights: ONNX Runtime reads from no other.
    """
    folder, segments = spec.graph.rpartition("/")[0], list[SegmentSpec]()
    for index, part in enumerate(cut(model)):
        name = f"segment-{index:02}.onnx"
        ir.save(part, graph.with_name(name))
        segments.append(
            SegmentSpec(
                graph=f"{folder}/{name}",
                inputs=tuple(name_of(value) for value in part.graph.inputs),
                outputs=tuple(name_of(value) for value in part.graph.outputs),
                weights=tuple(
                    name
                    for name, value in part.graph.initializers.items()
                    if isinstance(value.const_value, ir.ExternalTensor)
                ),
            )
        )
    return dataclasses.replace(spec, segments=tuple(segments))


def cut(model: ir.Model, parts: int = PARTS) -> Iterator[ir.Model]:
    """At most so many graphs that, run in order, are `model`, which stays as it is.

    Raises `ExportError` for a graph within a node, which no recipe makes.
    """
    uses = uses_of(model)
    ends = [*cuts(uses, parts), len(uses.nodes)]
    for begin, end in zip([0, *ends], ends, strict=False):
        yield _part(uses, begin, end)


def read_by(node: ir.Node) -> Iterator[str]:
    """The values that a node is given."""
    return (value.name for value in node.inputs if value is not None and value.name)


def uses_of(model: ir.Model) -> Uses:
    """Sort the nodes of `model` into those that are cut and those that are copied."""
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
    """`nodes` with every Cast of an input, as a LoRA's in 16 bits, just before its first reader."""
    given = {value.name for value in graph.inputs}
    casts = {
        name_of(node.outputs[0]): node
        for node in nodes
        if node.op_type == "Cast" and given.issuperset(read_by(node))
    }
    waiting = dict(casts)
    for node in nodes:
        if node in casts.values():
            continue
        yield from (waiting.pop(name) for name in read_by(node) if name in waiting)
        yield node
    yield from waiting.values()


# Where to cut


def cuts(uses: Uses, parts: int) -> list[int]:
    """The nodes that parts begin with, but for the first."""
    count = max(1, min(parts, len(uses.nodes) // LEAST))
    before, crossing = list(_bytes_before(uses)), list(_crossing(uses))
    part, found = before[-1] / count, [0]
    for index in range(1, count):
        last = len(uses.nodes) - (count - index)
        off = {i: abs(before[i] - index * part) for i in range(found[-1] + 1, last + 1)}
        near = {i: (crossing[i], each) for i, each in off.items() if each <= SLACK * part}
        found.append(min(near or off, key=lambda i, by=near or off: by[i]))
    return found[1:]


def _bytes_before(uses: Uses) -> Iterator[int]:
    """For every place, the bytes of the weights that are read before it."""
    seen, total = set[str](), 0
    yield total
    for node in uses.nodes:
        found = uses.weights([node])
        total += sum(nbytes for name, nbytes in found.items() if name not in seen)
        seen |= found.keys()
        yield total


def _crossing(uses: Uses) -> Iterator[float]:
    """For every place, how many activations were made before it and are read after it."""
    changes = [0.0] * (len(uses.nodes) + 2)
    for index, node in enumerate(uses.nodes):
        for output in node.outputs:
            if (name := output.name) and name in uses.last:
                rank = uses.table[name].rank
                weight = SMALL if rank is not None and rank < 3 else 1.0
                changes[index + 1] += weight
                changes[uses.last[name] + 1] -= weight
    return accumulate(changes[:-1])


# What a part is


def _part(uses: Uses, begin: int, end: int) -> ir.Model:
    """The nodes from `begin` to `end` as a graph of its own."""
    own, whole = uses.nodes[begin:end], uses.model.graph
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
        given = [None if each is None else value(name_of(each)) for each in node.inputs]
        nodes.append(_same(node, given))
        values |= {name_of(output): output for output in nodes[-1].outputs if output.name}
    made = (name_of(output) for node in own for output in node.outputs if output.name)
    outputs = [_typed(values[name], uses, name) for name in made if uses.last.get(name, -1) >= end]
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=constants,
        opset_imports=dict(whole.opset_imports),
        name=whole.name,
    )
    return ir.Model(graph, ir_version=uses.model.ir_version)


def _same(node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Node:
    """The node with other values of the same names."""
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
    """The value with its type, and its shape as the whole graph says, or as far as it is fixed."""
    graph, known = uses.model.graph, uses.table[name]
    stated = next((v for v in (*graph.inputs, *graph.outputs) if v.name == name), None)
    value.type = ir.TensorType(known.dtype)
    if stated is not None:
        value.shape = stated.shape
    elif known.shape is not None:
        value.shape = ir.Shape(list(known.shape))
    return value
