"""What only a debugger reads is gone, and the interface is not."""

from __future__ import annotations

import onnx_ir as ir

from eri_export.graphs.passes.strip_metadata import strip_metadata


def test_metadata_and_inner_types_go_and_the_interface_stays():
    model = ir.from_onnx_text(
        """
        <ir_version: 11, opset_import: ["" : 23]>
        g (float[N, 4] x) => (float[N, 4] y)
        {
            inner = Relu(x)
            y = Neg(inner)
        }
        """
    )
    first, last = model.graph
    first.metadata_props["stack_trace"] = "a long story"
    first.doc_string = "more of it"
    first.outputs[0].shape = ir.Shape(["s17", 4])
    strip_metadata(model)
    assert not first.metadata_props
    assert first.doc_string is None
    assert first.outputs[0].shape is None
    assert last.outputs[0].shape == ir.Shape(["N", 4])
    assert model.graph.inputs[0].dtype == ir.DataType.FLOAT
