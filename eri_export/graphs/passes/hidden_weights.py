"""Hides weights from the optimiser, so that it does not fold, rename or drop them.

The optimiser would fold `Transpose(W)` of a weight with values into a new constant with another
name, and it fails on fake values. A graph input is only a name to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import onnx_ir as ir
from torch._subclasses.fake_tensor import FakeTensor

from eri_export.graphs.passes.values import name_of
from eri_runtime.errors import ExportError


def hide_weights(model: ir.Model) -> frozenset[str]:
    """Turns every initialiser without bytes into a graph input and returns their names."""
    graph, hidden = model.graph, []
    for name, value in list(graph.initializers.items()):
        if isinstance(getattr(value.const_value, "raw", None), FakeTensor):
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
            hidden.append(name)
    return frozenset(hidden)


def restore_weights(model: ir.Model, hidden: Set[str], names: Mapping[str, str]) -> None:
    """Turns hidden weights back into initialisers, renamed by `names`, and drops unused ones.

    Weights with the same new name are tied: they become one initialiser. Raises `ExportError` for
    a used weight that `names` lacks: a buffer that no file holds.
    """
    graph = model.graph
    for value in [value for value in graph.inputs if name_of(value) in hidden]:
        graph.inputs.remove(value)
        if not value.uses():
            continue
        name = names.get(name_of(value))
        if name is None:
            raise ExportError(
                name_of(value), got="a buffer that no weights file holds", expected="a weight"
            )
        if name in graph.initializers:
            ir.convenience.replace_all_uses_with(value, graph.initializers[name])
        else:
            value.name = name
            graph.initializers.add(value)


def weights_of(model: ir.Model) -> list[ir.Value]:
    """Returns the initialisers that come from the checkpoint: those without an inline value."""
    return [
        value
        for value in model.graph.initializers.values()
        if value.const_value is None or isinstance(value.const_value, ir.ExternalTensor)
    ]
