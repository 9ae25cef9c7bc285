"""Checked access to names, types, producers and readers of a graph's values."""

from __future__ import annotations

import onnx_ir as ir

from eri_runtime.errors import ExportError


def name_of(value: ir.Value) -> str:
    """Returns the name of a value; raises `ExportError` if it has none."""
    if value.name is None:
        raise ExportError(value, got="a value without a name", expected="a named value")
    return value.name


def dtype_of(value: ir.Value) -> ir.DataType:
    """Returns the element type of a value; raises `ExportError` if it has none."""
    if value.dtype is None:
        raise ExportError(name_of(value), got="a value without a type", expected="a typed value")
    return value.dtype


def made_by(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """Follows first inputs back from `value` through operators `ops` and returns the last node.

    `ops` start with the producer of `value`. None if the chain has another operator.
    """
    node = None
    for op in ops:
        node = None if value is None else value.producer()
        if node is None or node.op_type != op:
            return None
        value = node.inputs[0]
    return node


def constant_of(value: ir.Value | None) -> list[float] | None:
    """Returns the numbers of a constant inside the graph, flat; None for anything else."""
    tensor = None if value is None else value.const_value
    if tensor is None or isinstance(tensor, ir.ExternalTensor):
        return None
    numbers: list[float] = tensor.numpy().reshape(-1).tolist()
    return numbers


def sole_user(value: ir.Value) -> ir.Node | None:
    """Returns the only node that reads `value`; None for several, or for a graph output."""
    users = {use.node for use in value.uses()}
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None
