"""Nodes that take the place of others: in order, each with one output named after theirs."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
import onnx_ir as ir


class Emitter:
    """Makes nodes for `graph`, and the constants they read, each of which the graph has once."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self.graph, self.name = graph, name
        self.nodes: list[ir.Node] = []

    def __call__(self, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        (output,) = node.outputs
        node.name = output.name = f"{self.name}.{len(self.nodes)}"
        self.nodes.append(node)
        return output

    def integers(self, *values: int) -> ir.Value:
        """A constant (N,) int64."""
        return self.constant(np.array(values, np.int64))

    def constant(self, array: np.ndarray) -> ir.Value:
        """A constant of the array's type and shape."""
        digest = sha256(array.tobytes()).hexdigest()[:12]
        name = f"constant.{array.dtype}.{'x'.join(map(str, array.shape))}.{digest}"
        if name not in self.graph.initializers:
            tensor = ir.tensor(array, name=name)
            self.graph.initializers.add(
                ir.Value(
                    name=name,
                    shape=ir.Shape(array.shape),
                    type=ir.TensorType(tensor.dtype),
                    const_value=tensor,
                )
            )
        return self.graph.initializers[name]
