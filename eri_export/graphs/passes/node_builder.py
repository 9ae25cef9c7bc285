"""Makes the nodes that replace others, in order, each with one output named after theirs."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators


class Emitter:
    """Makes nodes for `graph` and the constants they read; equal constants are made once."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self.graph, self.name = graph, name
        self.nodes: list[ir.Node] = []

    def __call__(self, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Makes a node of `op`, an operator of ONNX or "domain::operator"; returns its output."""
        domain, _, name = op.rpartition("::")
        node = ir.node(name, inputs, attributes, domain=domain)
        (output,) = node.outputs
        node.name = output.name = f"{self.name}.{len(self.nodes)}"
        self.nodes.append(node)
        return output

    def integers(self, *values: int) -> ir.Value:
        """Returns a constant (N,) int64."""
        return self.constant(np.array(values, np.int64))

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """Returns a constant of the array's type and shape."""
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
