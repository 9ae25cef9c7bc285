"""Removes metadata that only debuggers read; it is most of the bytes of a graph without weights."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass


def strip_metadata(model: ir.Model) -> None:
    """Clears metadata, doc strings and the types of inner values, which engines infer anyway.

    The traced shapes would also be stale, as they have the tracer's names for dimensions.
    """
    ClearMetadataAndDocStringPass()(model)
    interface = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if id(value) not in interface:
                value.shape = None
                value.type = None
