"""Computes attention a few heads at a time, to save memory.

    softmax(q·kᵀ·s + mask)·v

In an engine that stores the scores, (batch, heads, queries, keys), they take most of the memory.
Heads are independent, so a layer split along its heads gives the same numbers and stores the
scores of one slice only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from eri_export.graphs.passes.shape_inference import Inferred, inferred, sized
from eri_export.graphs.passes.values import name_of
from eri_runtime.bundle import ComponentSpec
from eri_runtime.errors import ExportError

PLAIN = "an Attention of (batch, heads, tokens, size) with one output and no past"


class Slices(NamedTuple):
    """How a layer is split: query heads per slice, key heads per part, and the part of each slice.

    Several slices may read one part of the keys and values.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    part: tuple[int, ...]


def with_slices(model: ir.Model, spec: ComponentSpec) -> ComponentSpec:
    """Slices the graph `model` as `spec` says and returns `spec`.

    If no layer has more heads than a slice, the returned `attention_slice` is None.
    """
    if spec.attention_slice is None or slice_attention(model, spec.attention_slice):
        return spec
    return dataclasses.replace(spec, attention_slice=None)


def slice_attention(model: ir.Model, most: int) -> int:
    """Splits every Attention of more than `most` heads, in place, and returns their number.

    The last slice has the remaining heads. If several heads share a key, a slice has whole groups
    of them or a part of one group. Raises `ExportError` for a form of Attention that no recipe has.
    """
    layers = [node for node in model.graph if node.op_type == "Attention"]
    table = inferred(model) if layers else {}
    count = 0
    for node in layers:
        heads, key_heads = (_heads(node, index, table) for index in (0, 1))
        if heads > most:
            _split(model.graph, node, slices_of(heads, key_heads, most), table)
            count += 1
    return count


def slices_of(heads: int, key_heads: int, most: int) -> Slices:
    """Returns how to compute `heads`, which share `key_heads` evenly, `most` at a time."""
    group = heads // key_heads
    if most >= group:
        keys = _chunks(key_heads, most // group)
        return Slices(tuple(group * n for n in keys), keys, tuple(range(len(keys))))
    within = _chunks(group, most)
    part = tuple(key for key in range(key_heads) for _ in within)
    return Slices(within * key_heads, (1,) * key_heads, part)


def _chunks(total: int, most: int) -> tuple[int, ...]:
    return tuple(min(most, total - start) for start in range(0, total, most))


def _heads(node: ir.Node, index: int, table: Mapping[str, Inferred]) -> int:
    """Returns the heads of a layer's queries or keys; `ExportError` for another form of layer."""
    value = node.inputs[index]
    shape = () if value is None else sized(name_of(value), table)
    past = [each for each in node.inputs[4:] if each is not None]
    present = [each for each in node.outputs[1:] if each.uses() or each.is_graph_output()]
    if len(shape) != 4 or shape[1] is None or past or present:
        got = f"{len(node.inputs)} inputs of which {'none' if value is None else value.name} has "
        raise ExportError(node.name, got=f"{got}{shape}", expected=PLAIN)
    return shape[1]


def _split(graph: ir.Graph, node: ir.Node, slices: Slices, table: Mapping[str, Inferred]) -> None:
    """Replaces a layer by its slices and their concatenation."""
    old, build = node.outputs[0], _Builder(graph, name_of(node.outputs[0]))
    queries = build.split(node.inputs[0], slices.queries, 1)
    keys, values = (build.split(node.inputs[index], slices.keys, 1) for index in (1, 2))
    masks = _masks(build, node, slices, table)
    attributes = {name: each.value for name, each in node.attributes.items()}
    outputs = [
        build("Attention", [query, keys[part], values[part], *mask], attributes)
        for query, part, mask in zip(queries, slices.part, masks, strict=True)
    ]
    new = build("Concat", outputs, {"axis": 1})
    ir.convenience.replace_nodes_and_values(graph, node, [node], build.nodes, [old], [new])


def _masks(
    build: _Builder, node: ir.Node, slices: Slices, table: Mapping[str, Inferred]
) -> list[list[ir.Value | None]]:
    """Returns the mask input of each slice: its part of a mask with heads, else the whole mask."""
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is None:
        return [[] for _ in slices.queries]
    shape = sized(name_of(mask), table)
    heads = shape[-3] if len(shape) > 2 else 1
    if heads is None:
        raise ExportError(name_of(mask), got=shape, expected="a mask whose heads are known")
    if heads == 1:
        return [[mask] for _ in slices.queries]
    return [[part] for part in build.split(mask, slices.queries, len(shape) - 3)]


class _Builder:
    """Makes the nodes that replace a layer, in order, named after its output."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self.graph, self.name = graph, name
        self.nodes: list[ir.Node] = []

    def __call__(
        self, op: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any]
    ) -> ir.Value:
        return self._added(ir.node(op, inputs, attributes))[0]

    def split(
        self, value: ir.Value | None, sizes: Sequence[int], axis: int
    ) -> Sequence[ir.Value | None]:
        """Splits a value along an axis; returns the value itself for a single part."""
        if len(sizes) == 1:
            return [value]
        inputs = [value, self._integers(sizes)]
        return self._added(ir.node("Split", inputs, {"axis": axis}, num_outputs=len(sizes)))

    def _added(self, node: ir.Node) -> Sequence[ir.Value]:
        node.name = f"{self.name}.slice.{len(self.nodes)}"
        for index, output in enumerate(node.outputs):
            output.name = f"{node.name}.{index}"
        self.nodes.append(node)
        return node.outputs

    def _integers(self, sizes: Sequence[int]) -> ir.Value:
        """Returns a constant (N,) int64 of the graph; equal ones are one value."""
        name = "heads." + "_".join(map(str, sizes))
        if name not in self.graph.initializers:
            self.graph.initializers.add(
                ir.Value(
                    name=name,
                    shape=ir.Shape([len(sizes)]),
                    type=ir.TensorType(ir.DataType.INT64),
                    const_value=ir.tensor(np.array(sizes, np.int64), name=name),
                )
            )
        return self.graph.initializers[name]
