"""Adds a low-rank product of graph inputs to every linear layer of a graph.

    y = x·Wᵀ + b + (x·A)·B

Hu et al. 2021, arXiv 2106.09685. A and B have one matrix for each row of the batch, or one that
all rows share, so every image can have its own LoRA without rewriting a weight. Convolutions have
no such inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from eri_export.graphs.passes.hidden_weights import weights_of
from eri_export.graphs.passes.values import dtype_of, name_of
from eri_export.graphs.recipes.base import Recipe
from eri_runtime.bundle import LORA_A, LORA_B, LORAS, RANK, ComponentSpec, TensorSpec
from eri_runtime.errors import ExportError

ROW_AXIS = "lora.row_axis"


class Linear(NamedTuple):
    """A layer that multiplies `x` by a weight (out, in); `last` outputs the product with bias."""

    x: ir.Value
    last: ir.Node
    is_vector: bool


def with_loras(model: ir.Model, recipe: Recipe, spec: ComponentSpec) -> ComponentSpec:
    """Adds the LoRA inputs of `recipe` to the graph `model` and returns `spec` with them."""
    if recipe.lora_rank is None:
        return spec
    ranges = recipe.lora_ranges
    constants = {name: each.max for name, each in ranges.items() if each.min == each.max}
    inputs = (*spec.plain_inputs, *add_lora_inputs(model, constants))
    return dataclasses.replace(spec, inputs=inputs, ranges={**spec.ranges, **ranges})


def add_lora_inputs(
    model: ir.Model, constants: Mapping[str, int] = MappingProxyType({})
) -> tuple[TensorSpec, ...]:
    """Adds `lora_A.W` (loras, in, rank) and `lora_B.W` (loras, rank, out) for each linear weight W.

    It works in place and returns the new inputs. All are float32; zeros leave the outputs
    unchanged. `loras` is 1 or the batch, `rank` any number; `constants` has the sizes of those
    that are fixed. A layer of vectors is a Gemm of (batch, in), one of sequences a MatMul of
    (batch, tokens, in).
    """
    added: list[TensorSpec] = []
    for weight, layers in list(linears(model)):
        out, width = weight.shape.numpy() if weight.shape is not None else ()
        name = name_of(weight)
        specs = (
            TensorSpec(name=LORA_A + name, dtype="float32", shape=(LORAS, width, RANK)),
            TensorSpec(name=LORA_B + name, dtype="float32", shape=(LORAS, RANK, out)),
        )
        a, b = (_input(model.graph, spec, dtype_of(weight), constants) for spec in specs)
        for layer in layers:
            _attach(model.graph, layer, a, b)
        added += specs
    return tuple(added)


def linears(model: ir.Model) -> Iterator[tuple[ir.Value, list[Linear]]]:
    """Yields the matrices of the checkpoint whose every use is a linear layer, with the layers."""
    for weight in weights_of(model):
        if weight.shape is None or len(weight.shape) != 2:
            continue
        by_use = [_linear(use.node, use.idx) for use in weight.uses()]
        layers = [layer for of_use in by_use if of_use is not None for layer in of_use]
        if layers and None not in by_use:
            yield weight, layers


def _linear(node: ir.Node, index: int) -> list[Linear] | None:
    """Returns the linear layers of one use of a weight, or None for another kind of use."""
    if index == 1 and node.op_type == "Gemm" and node.attributes.get_int("transB"):
        return [Linear(_operand(node, 0), node, is_vector=True)]
    if node.op_type != "Transpose":
        return None
    uses = list(node.outputs[0].uses())
    if any(use.node.op_type != "MatMul" or use.idx != 1 for use in uses):
        return None
    products = [use.node for use in uses]
    return [Linear(_operand(each, 0), _with_bias(each), is_vector=False) for each in products]


def _with_bias(product: ir.Node) -> ir.Node:
    """Returns the Add of a product's bias, which engines fuse with it, or the product itself."""
    uses = list(product.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return product
    add = uses[0].node
    other = _operand(add, 1 - uses[0].idx)
    is_bias = other.is_initializer() and other.shape is not None and len(other.shape) == 1
    return add if is_bias else product


def _operand(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise ExportError(node.name, got="no operand", expected=f"a whole {node.op_type}")
    return value


def _input(
    graph: ir.Graph, spec: TensorSpec, dtype: ir.DataType, constants: Mapping[str, int]
) -> ir.Value:
    """Adds a float32 input to the graph and returns it, cast to the type of its layer."""
    sizes = [size if isinstance(size, int) else constants.get(size, size) for size in spec.shape]
    value = ir.Value(name=spec.name, shape=ir.Shape(sizes), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(value)
    if dtype == ir.DataType.FLOAT:
        return value
    cast = ir.node("Cast", [value], {"to": dtype})
    graph.insert_before(graph[0], cast)
    return _named(cast, f"{spec.name}.cast")


def _attach(graph: ir.Graph, layer: Linear, a: ir.Value, b: ir.Value) -> None:
    """Adds (x·A)·B to a layer's output."""
    (y,) = layer.last.outputs
    nodes, x, uses = list[ir.Node](), layer.x, list(y.uses())

    def append(op: str, *inputs: ir.Value) -> ir.Value:
        nodes.append(ir.node(op, inputs))
        return _named(nodes[-1], f"{name_of(y)}.lora.{len(nodes)}")

    if layer.is_vector:
        x = append("Unsqueeze", x, _row_axis(graph))
    delta = append("MatMul", append("MatMul", x, a), b)
    if layer.is_vector:
        delta = append("Squeeze", delta, _row_axis(graph))
    _replace(graph, y, append("Add", y, delta), uses)
    graph.insert_after(layer.last, nodes)


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value, uses: Iterable[Any]) -> None:
    """Replaces `old` by `new` in these uses; a graph output keeps its name."""
    for use in uses:
        use.node.replace_input_with(use.idx, new)
    for index, output in enumerate(graph.outputs):
        if output is old:
            new.shape, new.type, name = old.shape, old.type, new.name
            new.name, old.name = old.name, name
            graph.outputs[index] = new


def _named(node: ir.Node, name: str) -> ir.Value:
    (output,) = node.outputs
    node.name = output.name = name
    return output


def _row_axis(graph: ir.Graph) -> ir.Value:
    """Returns the constant axis 1, along which a row's vector becomes a sequence of one token."""
    if ROW_AXIS not in graph.initializers:
        tensor = ir.tensor(np.array([1], np.int64), name=ROW_AXIS)
        graph.initializers.add(
            ir.Value(
                name=ROW_AXIS,
                shape=ir.Shape([1]),
                type=ir.TensorType(ir.DataType.INT64),
                const_value=tensor,
            )
        )
    return graph.initializers[ROW_AXIS]
