"""Replaces every stand-in by the graph of its block, which was traced once per kind."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Set

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, InlinePass

from eri_export.graphs.passes.values import name_of
from eri_export.graphs.repeated_blocks import BLOCK, DOMAIN, PATH


def stamp(
    model: ir.Model, block: ir.Model, paths: Collection[str], weights: Set[str], prefix: str
) -> frozenset[str]:
    """Replaces the stand-ins for `paths` by the graph of `block`; returns the weights' names.

    The inputs of `block` in `weights` are named `prefix` and a name. For each of the paths `model`
    gets new inputs for them, named `prefix`, the path and the name. The constants of `block`
    become constants of the model, once.
    """
    own = [value for value in block.graph.inputs if name_of(value) in weights]
    function = ir.Function(DOMAIN, f"Block{len(model.functions)}", graph=block.graph, attributes=[])
    model.functions[function.identifier()] = function
    shared = _shared_constants(block.graph, model.graph, function.name)
    added = set[str]()
    for node in list(_stand_ins(model.graph, paths)):
        inputs = list(_weight_inputs(own, prefix, node.attributes[PATH].as_string()))
        added |= {name_of(value) for value in inputs}
        model.graph.inputs.extend(inputs)
        call = ir.node(
            function.name,
            [*node.inputs, *inputs, *shared],
            domain=DOMAIN,
            num_outputs=len(node.outputs),
        )
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [call], node.outputs, call.outputs
        )
    return frozenset(added)


def inline(model: ir.Model) -> None:
    """Inlines every stamped block, as some engines do not optimise inside functions.

    Equal computations of several blocks on the same values, such as the shape of a common input,
    are merged, as in a graph that was traced as a whole.
    """
    if model.functions:
        InlinePass()(model)
        CommonSubexpressionEliminationPass()(model)
    model.opset_imports.pop(DOMAIN, None)


def _stand_ins(graph: ir.Graph, paths: Collection[str]) -> Iterator[ir.Node]:
    for node in graph:
        is_stand_in = node.domain == DOMAIN and node.op_type == BLOCK
        if is_stand_in and node.attributes[PATH].as_string() in paths:
            yield node


def _shared_constants(block: ir.Graph, graph: ir.Graph, function: str) -> list[ir.Value]:
    """Moves the block's initialisers to `graph`, as a function has none, and makes them inputs."""
    constants = list(block.initializers.values())
    block.initializers.clear()
    block.inputs.extend(constants)
    shared = [_shared(constant, function) for constant in constants]
    for value in shared:
        graph.initializers.add(value)
    return shared


def _shared(constant: ir.Value, function: str) -> ir.Value:
    """Returns a copy of the constant for the whole graph, and clears the function's input."""
    value = ir.Value(
        name=f"{function}.{name_of(constant)}",
        shape=constant.shape,
        type=constant.type,
        const_value=constant.const_value,
    )
    constant.const_value = None
    return value


def _weight_inputs(weights: Iterable[ir.Value], prefix: str, path: str) -> Iterator[ir.Value]:
    for value in weights:
        name = f"{prefix}{path}.{name_of(value).removeprefix(prefix)}"
        yield ir.Value(name=name, shape=value.shape, type=value.type)
