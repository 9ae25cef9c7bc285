"""Renames a graph's inputs, outputs and dynamic dimensions to those of the bundle's specs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from eri_runtime.bundle import TensorSpec
from eri_runtime.errors import ExportError

DTYPES = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64}


def name_interface(
    model: ir.Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Renames inputs and outputs in order; `ExportError` for a value of another type or rank."""
    specs = [*inputs, *outputs]
    values = [*model.graph.inputs, *model.graph.outputs]
    _free_names(model, values, {spec.name for spec in specs})
    for value, spec in zip(values, specs, strict=True):
        _check(value, spec)
        value.name = spec.name
        value.shape = ir.Shape(_sizes(value, spec))


def _sizes(value: ir.Value, spec: TensorSpec) -> list[int | str]:
    """Returns the spec's names for dynamic dimensions, and the traced sizes of the others."""
    traced = value.shape.dims if value.shape is not None else ()
    return [
        size if isinstance(size, int) else name
        for size, name in zip(traced, spec.shape, strict=True)
    ]


def _check(value: ir.Value, spec: TensorSpec) -> None:
    rank = None if value.shape is None else len(value.shape)
    if value.dtype != DTYPES[spec.dtype] or rank != len(spec.shape):
        raise ExportError(
            spec.name,
            got=f"{value.dtype} of rank {rank}",
            expected=f"{spec.dtype} of rank {len(spec.shape)}",
        )


def _free_names(model: ir.Model, interface: Iterable[ir.Value], names: set[str]) -> None:
    """Renames inner values that have one of the interface's new names."""
    for value in (output for node in model.graph for output in node.outputs):
        if value.name in names and not any(value is each for each in interface):
            value.name = f"{value.name}_inner"
