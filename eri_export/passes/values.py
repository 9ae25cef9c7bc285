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
