"""Which values are alive at once while a graph runs: a walk over its nodes in order.

The bytes of every value are a polynomial in the sizes of the inputs. Two kinds of buffers that an
engine may allocate for itself are factors of the polynomials, because engines differ in them:
`scores`, the (batch, heads, queries, keys) of attention, and `copies`, the blocked tensors around
convolutions and the intermediate results of a group normalisation. Every float counts 4 bytes, as
a CPU computes 16-bit components in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

import onnx_ir as ir

from eri_export.graphs.memory.polynomials import (
    Polynomial,
    below,
    constant,
    parse,
    plus,
    product,
    variable,
)
from eri_export.graphs.passes.values import name_of
from eri_export.graphs.repeated_blocks import BLOCK, DOMAIN, PATH
from eri_runtime.bundle import COPIES, SCORES

HEADS = "heads."  # prefix of a variable, before the layer's number of heads
VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
IN_PLACE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Sqrt", "Reciprocal", "Pow", "Sigmoid", "Tanh", "Neg", "Clip"}
)
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
Blocks = Mapping[str, tuple[ir.Graph, Set[str]]]  # by path, with the inputs that are weights
Peaks = tuple[Polynomial, ...]


def undominated(peaks: Iterable[Polynomial]) -> Peaks:
    """Returns the peaks without those that another peak exceeds at every size."""
    kept: list[Polynomial] = []
    for each in peaks:
        if not any(below(each, other) for other in kept):
            kept = [other for other in kept if not below(other, each)] + [each]
    return tuple(kept)


@dataclass(frozen=True)
class Walk:
    """Walks graphs with stand-ins for known blocks; caches a block's peaks per kind of call."""

    blocks: Blocks
    known: dict[object, Peaks] = field(default_factory=dict)

    def peaks(
        self,
        graph: ir.Graph,
        weights: Set[str],
        symbols: Mapping[str, Polynomial],
        owned: Set[ir.Value],
    ) -> Peaks:
        """Returns the memory alive at each node; `owned` inputs are freed after their last use."""
        alive = _Alive(symbols)
        for value in graph.inputs:
            if name_of(value) in weights:
                alive.constants.add(value)
            elif value in owned:
                alive.begin(value)
        alive.constants.update(graph.initializers.values())
        kept = set(graph.outputs)
        peaks = [alive.live]
        for node in graph:
            if alive.is_constant(node):
                alive.constants.update(node.outputs)
                continue
            peaks += self._node(node, alive, kept)
        return undominated(peaks)

    def _node(self, node: ir.Node, alive: _Alive, kept: Set[ir.Value]) -> list[Polynomial]:
        """Returns the peaks while a node runs, and updates `alive` to the state after it."""
        ended = alive.used(node)
        reused = alive.reused(node, ended)
        if reused is not None:
            peaks = [alive.live]
            alive.share(node.outputs[0], reused, kept)
            ended.discard(reused)
        else:
            peaks = self._allocating(node, alive, ended)
            for output in node.outputs:
                if output.uses() or output in kept:
                    alive.begin(output, output in kept)
        alive.end(ended)
        return peaks

    def _allocating(self, node: ir.Node, alive: _Alive, ended: Set[ir.Value]) -> list[Polynomial]:
        """Returns the peaks while a node runs that allocates its outputs."""
        if node.domain == DOMAIN and node.op_type == BLOCK:
            return [plus(alive.without(ended), inner) for inner in self._block(node, alive, ended)]
        live = alive.live
        for output in node.outputs:
            live = plus(live, alive.size(output))
        return [plus(live, extra) for extra in _extras(node, alive, ended)]

    def _block(self, node: ir.Node, alive: _Alive, ended: Set[ir.Value]) -> Peaks:
        """Returns the peaks inside a block, in the sizes of the outer graph's inputs."""
        path = node.attributes[PATH].as_string()
        graph, weights = self.blocks[path]
        arguments = [value for value in graph.inputs if name_of(value) not in weights]
        symbols: dict[str, Polynomial] = {}
        owned = set()
        for inner, outer in zip(arguments, node.inputs, strict=True):
            if outer is None or inner.shape is None:
                raise ValueError(f"an input of {path} has no shape")
            for size, outer_size in zip(inner.shape, alive.shape(outer), strict=True):
                if not isinstance(size, int):
                    symbols.setdefault(str(size.value), outer_size)
            if alive.root(outer) in ended:
                owned.add(inner)
        sizes = tuple((name, tuple(sorted(each.items()))) for name, each in symbols.items())
        key = id(graph), sizes, frozenset(name_of(value) for value in owned)
        if key not in self.known:
            self.known[key] = self.peaks(graph, weights, symbols, owned)
        return self.known[key]


class _Alive:
    """The values with memory at a point of a walk, and how many uses each has left.

    A view has no memory; its uses count for its root, the value whose memory it shows.
    """

    def __init__(self, symbols: Mapping[str, Polynomial]) -> None:
        self.live: Polynomial = {}
        self.constants: set[ir.Value] = set()
        self._symbols = symbols
        self._roots: dict[ir.Value, ir.Value] = {}
        self._left: dict[ir.Value, int] = {}

    def shape(self, value: ir.Value) -> list[Polynomial]:
        """Returns a value's sizes; raises `ValueError` if they are unknown."""
        if value.shape is None:
            raise ValueError(f"{value.name} has no shape")
        return [
            constant(float(size))
            if isinstance(size, int)
            else parse(str(size.value), self._symbols)
            for size in value.shape
        ]

    def size(self, value: ir.Value) -> Polynomial:
        """Returns a value's bytes; raises `ValueError` if its type or shape is unknown."""
        if value.dtype is None:
            raise ValueError(f"{value.name} has no type")
        itemsize = 4 if value.dtype in FLOATS else value.dtype.itemsize
        return product([constant(float(itemsize)), *self.shape(value)])

    def root(self, value: ir.Value) -> ir.Value:
        """Returns the value whose memory a view shows, or the value itself."""
        return self._roots.get(value, value)

    def is_constant(self, node: ir.Node) -> bool:
        """Returns whether an engine computes the node once, when it opens the graph."""
        return all(value is None or value in self.constants for value in node.inputs)

    def begin(self, value: ir.Value, kept: bool = False) -> None:
        """Allocates a value; one that is `kept` stays to the end."""
        self._left[value] = len(value.uses()) + kept
        self.live = plus(self.live, self.size(value))

    def used(self, node: ir.Node) -> set[ir.Value]:
        """Counts the uses of a node's inputs and returns the roots that have none left."""
        roots = [self.root(value) for value in node.inputs if value is not None]
        for root in roots:
            if root in self._left:
                self._left[root] -= 1
        return {root for root in roots if self._left.get(root) == 0}

    def reused(self, node: ir.Node, ended: Set[ir.Value]) -> ir.Value | None:
        """Returns the root whose memory the output reuses, or None.

        A view reuses its input's, an elementwise node that of an input that ends with it.
        """
        first = node.inputs[0] if node.inputs else None
        if first is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in VIEWS:
            return self.root(first)
        if node.op_type not in IN_PLACE:
            return None
        size = self.size(node.outputs[0])
        fits = (root for root in map(self.root, filter(None, node.inputs)) if root in ended)
        return next((root for root in fits if self.size(root) == size), None)

    def share(self, output: ir.Value, root: ir.Value, kept: Set[ir.Value]) -> None:
        """Lets `output` use the memory of `root`."""
        self._roots[output] = root
        if root in self._left:
            self._left[root] += len(output.uses()) + (output in kept)

    def end(self, ended: Iterable[ir.Value]) -> None:
        """Frees these roots."""
        self.live = self.without(ended)

    def without(self, ended: Iterable[ir.Value]) -> Polynomial:
        """Returns the live memory without these roots."""
        live = self.live
        for root in ended:
            live = plus(live, self.size(root), -1.0)
        return live


def _extras(node: ir.Node, alive: _Alive, ended: Set[ir.Value]) -> list[Polynomial]:
    """Returns the alternatives of what an engine may allocate for itself while it runs a node."""
    first = node.inputs[0]
    match node.op_type:
        case "Attention":
            return [product([variable(SCORES), _scores(node, alive)])]
        case "GroupNormalization" if first is not None:
            return [product([variable(COPIES), constant(2.0), alive.size(first)])]
        case "Conv" if first is not None:
            return [
                product([variable(COPIES), each])
                for each in _reordered(
                    alive.size(first), alive.size(node.outputs[0]), alive.root(first) in ended
                )
            ]
    return [{}]


def _reordered(x: Polynomial, y: Polynomial, ends: bool) -> list[Polynomial]:
    """Returns the extra memory of a convolution that copies input and output to a blocked layout.

    The input x, its copy X, the output's copy Y and the output y are alive in turn; `ends` says
    that x is freed after its copy.
    """
    if ends:
        return [{}, plus(y, x, -1.0), plus(x, y, -1.0)]
    return [x, y]


def _scores(node: ir.Node, alive: _Alive) -> Polynomial:
    """Returns the bytes of attention's (batch, heads, queries, keys) scores in float32."""
    query, key = (value for value in node.inputs[:2] if value is not None)
    q, k = alive.shape(query), alive.shape(key)
    has_head_axis = len(q) == 4  # (batch, heads, queries, size); else heads are in the last axis
    heads = q[1].get((), 0.0) if has_head_axis else node.attributes["q_num_heads"].as_int()
    return product([constant(4.0), q[0], variable(f"{HEADS}{int(heads)}"), q[-2], k[-2]])
