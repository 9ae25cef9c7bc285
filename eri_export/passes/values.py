"""What every value of a finished graph has, and what the IR's types leave open."""

from __future__ import annotations

import onnx_ir as ir

from eri_runtime.errors import ExportError


def name_of(value: ir.Value) -> str:
    """The name of a value; `ExportError` for none."""
    if value.name is None:
        raise ExportError(value, got="a value without a name", expected="a named value")
    return value.name


def dtype_of(value: ir.Value) -> ir.DataType:
    """The element type of a value; `ExportError` for none."""
    if value.dtype is None:
        raise ExportError(name_of(value), got="a value without a type", expected="a typed value")
    return value.dtype


def made_by(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """The last node of the chain of first inputs that made `value` by `ops`, or None for another.

    `ops` are in the order of reading, from `value` backwards.
    """
    node = None
    for op in ops:
        node = None if value is None else value.producer()
        if node is None or node.op_type != op:
            return None
        value = node.inputs[0]
    return node


def constant_of(value: ir.Value | None) -> list[float] | None:
    """The numbers of a constant of the graph itself, flat; None for anything else."""
    tensor = None if value is None else value.const_value
    if tensor is None or isinstance(tensor, ir.ExternalTensor):
        return None
    numbers: list[float] = tensor.numpy().reshape(-1).tolist()
    return numbers


def sole_user(value: ir.Value) -> ir.Node | None:
    """The node that reads `value`, if it is but one and the graph does not give the value."""
    users = {use.node for use in value.uses()}
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None
