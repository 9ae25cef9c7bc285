"""What is alive at once while a graph runs: a walk over its nodes in their order.

The bytes of every value are a polynomial in the sizes of the inputs. Of what an engine may hold
for itself two things are factors of their own, as engines differ in them: `scores`, the (batch,
heads, queries, keys) of attention, and `copies`, the blocked tensors around convolutions and what
is between the parts of a group normalisation. All floats count 4 bytes: a CPU computes 16-bit
components in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

import onnx_ir as ir

from eri_export.blocks import BLOCK, DOMAIN, PATH
from eri_export.passes.values import name_of
from eri_export.polynomials import Polynomial, below, constant, parse, plus, product, variable
from eri_runtime.memory.estimate import COPIES, SCORES

HEADS = "heads."  # and a number: a layer's heads, of which a sliced graph computes a few at once
VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
IN_PLACE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Sqrt", "Reciprocal", "Pow", "Sigmoid", "Tanh", "Neg", "Clip"}
)
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
Blocks = Mapping[str, tuple[ir.Graph, Set[str]]]  # by path, with the inputs that are weights
Peaks = tuple[Polynomial, ...]


def undominated(peaks: Iterable[Polynomial]) -> Peaks:
    """Those that no other is above at every size."""
    kept: list[Polynomial] = []
    for each in peaks:
        if not any(below(each, other) for other in kept):
            kept = [other for other in kept if not below(other, each)] + [each]
    return tuple(kept)


@dataclass(frozen=True)
class Walk:
    """Walks graphs whose blocks are known; each block once for each way it is called."""

    blocks: Blocks
    known: dict[object, Peaks] = field(default_factory=dict)

    def peaks(
        self,
        graph: ir.Graph,
        weights: Set[str],
        symbols: Mapping[str, Polynomial],
        owned: Set[ir.Value],
    ) -> Peaks:
        """What is alive at its nodes; of the inputs those `owned` end with their last use."""
        alive = _Alive(symbols)
        for value in graph.inputs:
            if name_of(value) in weights:
                alive.constants.add(value)
            elif value in owned:
                alive.begin(value)
        alive.constants.update(graph.initializers.values())
        kept = set(graph.outputs)
        found = [alive.live]
        for node in graph:
            if alive.is_constant(node):
                alive.constants.update(node.outputs)
                continue
            found += self._node(node, alive, kept)
        return undominated(found)

    def _node(self, node: ir.Node, alive: _Alive, kept: Set[ir.Value]) -> list[Polynomial]:
        """The peaks while a node runs; `alive` is then as after it."""
        ended = alive.used(node)
        taken = alive.taken_over(node, ended)
        if taken is not None:
            found = [alive.live]
            alive.share(node.outputs[0], taken, kept)
            ended.discard(taken)
        else:
            found = self._beside(node, alive, ended)
            for output in node.outputs:
                if output.uses() or output in kept:
                    alive.begin(output, output in kept)
        alive.end(ended)
        return found

    def _beside(self, node: ir.Node, alive: _Alive, ended: Set[ir.Value]) -> list[Polynomial]:
        """What is alive while a node runs that writes values of its own."""
        if node.domain == DOMAIN and node.op_type == BLOCK:
            return [plus(alive.but(ended), inner) for inner in self._block(node, alive, ended)]
        live = alive.live
        for output in node.outputs:
            live = plus(live, alive.size(output))
        return [plus(live, extra) for extra in _extras(node, alive, ended)]

    def _block(self, node: ir.Node, alive: _Alive, ended: Set[ir.Value]) -> Peaks:
        path = node.attributes[PATH].as_string()
        graph, weights = self.blocks[path]
        given = [value for value in graph.inputs if name_of(value) not in weights]
        symbols: dict[str, Polynomial] = {}
        owned = set()
        for inner, outer in zip(given, node.inputs, strict=True):
            if outer is None or inner.shape is None:
                raise ValueError(f"an input of {path} has no shape")
            for size, there in zip(inner.shape, alive.shape(outer), strict=True):
                if not isinstance(size, int):
                    symbols.setdefault(str(size.value), there)
            if alive.root(outer) in ended:
                owned.add(inner)
        sizes = tuple((name, tuple(sorted(each.items()))) for name, each in symbols.items())
        key = id(graph), sizes, frozenset(name_of(value) for value in owned)
        if key not in self.known:
            self.known[key] = self.peaks(graph, weights, symbols, owned)
        return self.known[key]


class _Alive:
    """The values that have memory at a point of a walk, and how many uses each has still to come.

    A view has none of its own: its uses are those of its root.
    """

    def __init__(self, symbols: Mapping[str, Polynomial]) -> None:
        self.live: Polynomial = {}
        self.constants: set[ir.Value] = set()
        self._symbols = symbols
        self._roots: dict[ir.Value, ir.Value] = {}
        self._left: dict[ir.Value, int] = {}

    def shape(self, value: ir.Value) -> list[Polynomial]:
        """Its sizes; raises `ValueError` where they are unknown."""
        if value.shape is None:
            raise ValueError(f"{value.name} has no shape")
        return [
            constant(float(size))
            if isinstance(size, int)
            else parse(str(size.value), self._symbols)
            for size in value.shape
        ]

    def size(self, value: ir.Value) -> Polynomial:
        """Its bytes."""
        if value.dtype is None:
            raise ValueError(f"{value.name} has no type")
        itemsize = 4 if value.dtype in FLOATS else value.dtype.itemsize
        return product([constant(float(itemsize)), *self.shape(value)])

    def root(self, value: ir.Value) -> ir.Value:
        """The value whose memory it has."""
        return self._roots.get(value, value)

    def is_constant(self, node: ir.Node) -> bool:
        """Whether an engine computes it once, when it opens the graph."""
        return all(value is None or value in self.constants for value in node.inputs)

    def begin(self, value: ir.Value, kept: bool = False) -> None:
        """It has memory from here on; one that is `kept` has it to the end."""
        self._left[value] = len(value.uses()) + kept
        self.live = plus(self.live, self.size(value))

    def used(self, node: ir.Node) -> set[ir.Value]:
        """Count the uses of a node's inputs; the roots that have none left."""
        roots = [self.root(value) for value in node.inputs if value is not None]
        for root in roots:
            if root in self._left:
                self._left[root] -= 1
        return {root for root in roots if self._left.get(root) == 0}

    def taken_over(self, node: ir.Node, ended: Set[ir.Value]) -> ir.Value | None:
        """The root whose memory the output gets: of a view, or one that ends in an elementwise."""
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
        """`output` has the memory of `root`."""
        self._roots[output] = root
        if root in self._left:
            self._left[root] += len(output.uses()) + (output in kept)

    def end(self, ended: Iterable[ir.Value]) -> None:
        """These have no memory any more."""
        self.live = self.but(ended)

    def but(self, ended: Iterable[ir.Value]) -> Polynomial:
        """What is alive without these."""
        live = self.live
        for root in ended:
            live = plus(live, self.size(root), -1.0)
        return live


def _extras(node: ir.Node, alive: _Alive, ended: Set[ir.Value]) -> list[Polynomial]:
    """What an engine may have beside inputs and outputs while it runs a node: any of these."""
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
    """Blocked copies of a convolution's input and output, beside both: x, X, Y, y in turn."""
    if ends:
        return [{}, plus(y, x, -1.0), plus(x, y, -1.0)]
    return [x, y]


def _scores(node: ir.Node, alive: _Alive) -> Polynomial:
    """Bytes of (batch, heads, queries, keys) in float32."""
    query, key = (value for value in node.inputs[:2] if value is not None)
    q, k = alive.shape(query), alive.shape(key)
    apart = len(q) == 4  # (batch, heads, queries, size); else heads are within the last axis
    heads = q[1].get((), 0.0) if apart else node.attributes["q_num_heads"].as_int()
    return product([constant(4.0), q[0], variable(f"{HEADS}{int(heads)}"), q[-2], k[-2]])
