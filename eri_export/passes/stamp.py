"""Puts the graph of a block, traced once, in the place of every stand-in for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Set

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, InlinePass

from eri_export.blocks import BLOCK, DOMAIN, PATH
from eri_export.passes.values import name_of


def stamp(
    model: ir.Model, block: ir.Model, paths: Collection[str], weights: Set[str], prefix: str
) -> frozenset[str]:
    """Replace the stand-ins for `paths` by the graph of `block`; the names of their weights.

    Those of the inputs of `block` that are in `weights` are named `prefix` and a name; for each
    block `model` gets inputs of its own for them, named `prefix`, its path and the name. The
    constants of `block` become the model's, once.
    """
    own = [value for value in block.graph.inputs if name_of(value) in weights]
    function = ir.Function(DOMAIN, f"Block{len(model.functions)}", graph=block.graph, attributes=[])
    model.functions[function.identifier()] = function
    shared = _shared_constants(block.graph, model.graph, function.name)
    added = set[str]()
    for node in list(_stand_ins(model.graph, paths)):
        given = list(_own(own, prefix, node.attributes[PATH].as_string()))
        added |= {name_of(value) for value in given}
        model.graph.inputs.extend(given)
        call = ir.node(
            function.name,
            [*node.inputs, *given, *shared],
            domain=DOMAIN,
            num_outputs=len(node.outputs),
        )
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [call], node.outputs, call.outputs
        )
    return frozenset(added)


def inline(model: ir.Model) -> None:
    """Write every stamped block out: engines optimise what they see, and some see no functions.

    What several blocks compute alike from the same values, such as the shape of their common
    input, is then computed once, as it is where they were traced together.
    """
    if model.functions:
        InlinePass()(model)
        CommonSubexpressionEliminationPass()(model)
    model.opset_imports.pop(DOMAIN, None)


def _stand_ins(graph: ir.Graph, paths: Collection[str]) -> Iterator[ir.Node]:
    for node in graph:
        own = node.domain == DOMAIN and node.op_type == BLOCK
        if own and node.attributes[PATH].as_string() in paths:
            yield node


def _shared_constants(block: ir.Graph, graph: ir.Graph, function: str) -> list[ir.Value]:
    """A function may hold no initialisers: they become its last inputs, and `graph` gives them."""
    constants = list(block.initializers.values())
    block.initializers.clear()
    block.inputs.extend(constants)
    shared = [_shared(constant, function) for constant in constants]
    for value in shared:
        graph.initializers.add(value)
    return shared


def _shared(constant: ir.Value, function: str) -> ir.Value:
    """The constant as a value of the whole graph; the function's own input has no value left."""
    value = ir.Value(
        name=f"{function}.{name_of(constant)}",
        shape=constant.shape,
        type=constant.type,
        const_value=constant.const_value,
    )
    constant.const_value = None
    return value


def _own(weights: Iterable[ir.Value], prefix: str, path: str) -> Iterator[ir.Value]:
    for value in weights:
        name = f"{prefix}{path}.{name_of(value).removeprefix(prefix)}"
        yield ir.Value(name=name, shape=value.shape, type=value.type)
