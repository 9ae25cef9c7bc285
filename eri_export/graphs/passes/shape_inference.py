"""Types and shapes that ONNX infers for a finished graph, which `strip_metadata` has cleared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from eri_export.graphs.passes.values import dtype_of, name_of
from eri_runtime.errors import ExportError

# operators without shape inference whose output has the type and shape of their first input
UNKNOWN = ("GroupNormalization",)


@dataclass(frozen=True)
class Inferred:
    """The element type of a value, and its sizes: None for a dynamic one."""

    dtype: ir.DataType
    shape: tuple[int | None, ...] | None

    @property
    def rank(self) -> int | None:
        """The number of axes, None if unknown."""
        return None if self.shape is None else len(self.shape)


def inferred(model: ir.Model) -> Mapping[str, Inferred]:
    """Returns types and shapes of all values of `model` by name, and leaves `model` unchanged.

    Raises `ExportError` for a value whose type cannot be inferred.
    """
    copy = model.clone()
    for node in copy.graph:
        if node.op_type in UNKNOWN:
            node.op_type = "Identity"
            node.attributes.clear()
            node.resize_inputs(1)
    graph = ShapeInferencePass()(copy).model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    values += [output for node in graph for output in node.outputs]
    return {name_of(value): Inferred(dtype_of(value), _sizes(value)) for value in values}


def sized(name: str, table: Mapping[str, Inferred]) -> tuple[int | None, ...]:
    """Returns the sizes of a value; raises `ExportError` if not even its rank is known."""
    shape = table[name].shape
    if shape is None:
        raise ExportError(name, got="a value of unknown rank", expected="one whose axes are known")
    return shape


def _sizes(value: ir.Value) -> tuple[int | None, ...] | None:
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)
