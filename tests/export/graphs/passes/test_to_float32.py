"""The float32 twin computes the same, in float32 throughout."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from eri_export.graphs.passes.to_float32 import widen

NUMPY = {"FLOAT16": np.float16, "BFLOAT16": ml_dtypes.bfloat16}


@pytest.fixture(params=NUMPY)
def model(request):
    """y = float32(narrow(x) * c + k), c an initialiser and k a constant node."""
    narrow = ir.DataType[request.param]
    x, y = ir.val("x", ir.DataType.FLOAT, ["N", 2]), ir.val("y", ir.DataType.FLOAT, ["N", 2])
    constant = np.array([1.5, -3], NUMPY[request.param])
    c = ir.val("c", narrow, [2], const_value=ir.tensor(constant, name="c"))
    k = ir.node("Constant", [], {"value": ir.tensor(constant * 2)})
    cast = ir.node("Cast", [x], {"to": int(narrow)})
    mul = ir.node("Mul", [cast.outputs[0], c])
    add = ir.node("Add", [mul.outputs[0], k.outputs[0]])
    back = ir.node("Cast", [add.outputs[0]], {"to": int(ir.DataType.FLOAT)}, outputs=[y])
    nodes = [k, cast, mul, add, back]
    graph = ir.Graph([x], [y], nodes=nodes, initializers=[c], opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=11)


def test_the_twin_runs_and_computes_the_same(model):
    widen(model)
    raw = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    x = np.array([[1, 2], [0.25, 8]], np.float32)
    np.testing.assert_array_equal(
        session.run(None, {"x": x})[0], x * np.float32([1.5, -3]) + np.float32([3, -6])
    )


def test_no_narrow_type_is_left(model):
    widen(model)
    text = str(ir.to_proto(model))
    assert "data_type: 10" not in text
    assert "data_type: 16" not in text
    for node in model.graph:
        if node.op_type == "Cast":
            assert node.attributes["to"].as_int() == ir.DataType.FLOAT


@pytest.mark.parametrize("name", NUMPY)
def test_a_weight_outside_the_graph_stays_as_it_is_and_is_cast(name, tmp_path):
    narrow = ir.DataType[name]
    values = np.array([1.5, -3], NUMPY[name])
    (tmp_path / "w.safetensors").write_bytes(b"head" + values.tobytes())
    where = ir.ExternalTensor("w.safetensors", 4, 4, narrow, shape=ir.Shape([2]), name="w")
    w = ir.val("w", narrow, [2], const_value=where)
    neg = ir.node("Neg", [w])
    neg.outputs[0].name = "y"
    graph = ir.Graph([], neg.outputs, nodes=[neg], initializers=[w], opset_imports={"": 23})
    widen(ir.Model(graph, ir_version=11))
    assert w.dtype == narrow
    assert w.const_value is where
    neg.outputs[0].dtype, neg.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([2])
    ir.save(ir.Model(graph, ir_version=11), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(session.run(None, {})[0], np.float32([-1.5, 3]))
