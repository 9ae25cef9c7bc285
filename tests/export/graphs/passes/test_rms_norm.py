"""A written out RMSNormalization becomes one; what only looks like it stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from eri_export.graphs.passes.node_builder import Emitter
from eri_export.graphs.passes.rms_norm import fuse_rms_norms

EPSILON = 1e-3  # large enough to show where it is lost
SCALE = np.linspace(0.5, 2, 8, dtype=np.float32)
USUAL = {"power": 2.0, "axis": -1, "wide": None, "narrow": None, "swapped": False}


def written_out(**words):
    """A graph of seven operators, or nine where it is taken in float32 and cast back."""
    words = {**USUAL, **words}
    kind = ir.DataType.FLOAT if words["wide"] is None else ir.DataType.FLOAT16
    x = ir.val("x", kind, ("batch", 3, 8))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="g")
    emit = Emitter(graph, "n")
    given = x if words["wide"] is None else emit("Cast", x, to=words["wide"])
    squares = emit("Pow", given, emit.constant(np.float32(words["power"]).reshape(())))
    mean = emit("ReduceMean", squares, emit.integers(words["axis"]), keepdims=1)
    total = emit("Add", mean, emit.constant(np.array(EPSILON, np.float32)))
    made = emit("Mul", given, emit("Reciprocal", emit("Sqrt", total)))
    if words["narrow"] is not None:
        made = emit("Cast", made, to=words["narrow"])
    scale = emit.constant(SCALE.astype(kind.numpy()))
    emit("Mul", *((scale, made) if words["swapped"] else (made, scale)))
    graph.extend(emit.nodes)
    y = emit.nodes[-1].outputs[0]
    y.name, y.type = "y", ir.TensorType(kind)
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=11)


def run(model, dtype):
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(dtype)
    raw = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(raw).run(["y"], {"x": x})[0]


HALF = {"wide": ir.DataType.FLOAT, "narrow": ir.DataType.FLOAT16}


# the same numbers in another order of adding: a few units in the last place
@pytest.mark.parametrize(
    ("words", "dtype", "tolerance"),
    [
        ({}, np.float32, 1e-6),
        ({"swapped": True}, np.float32, 1e-6),
        (HALF, np.float16, 2e-3),
    ],
)
def test_it_is_fused_and_gives_the_same(words, dtype, tolerance):
    model = written_out(**words)
    expected = run(model, dtype)
    fuse_rms_norms(model)
    (node,) = (each for each in model.graph if each.outputs[0].is_graph_output())
    assert node.op_type == "RMSNormalization"
    np.testing.assert_allclose(run(model, dtype), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("words", [{"power": 3.0}, {"axis": 1}])
def test_what_only_looks_like_it_stays(words):
    model = written_out(**words)
    fuse_rms_norms(model)
    assert "RMSNormalization" not in [node.op_type for node in model.graph]
