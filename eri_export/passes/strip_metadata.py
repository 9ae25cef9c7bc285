"""Removes what only a debugger reads: in a graph without weights it is most of the bytes."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass


def strip_metadata(model: ir.Model) -> None:
    """Clear metadata, doc strings and the types of inner values, which engines infer anyway.

    The inferred shapes would also be stale: they name dimensions as the tracer did.
    """
    ClearMetadataAndDocStringPass()(model)
    outer = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if id(value) not in outer:
                value.shape = None
                value.type = None
