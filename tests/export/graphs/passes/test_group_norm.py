"""GroupNormalization in plain operators gives its definition's numbers; 16 bits keep it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from eri_export.graphs.passes.group_norm import expand_group_norms

GROUPS, EPSILON = 4, 1e-5
WEIGHTS = {"scale": np.linspace(0.5, 2, 12), "bias": np.linspace(-1, 1, 12)}


def group_norm(*shape, kind=ir.DataType.FLOAT):
    """A model of one GroupNormalization of `shape`, whose weights are its initialisers."""
    x, y = ir.val("x", kind, shape), ir.val("y", kind)
    weights = [
        ir.val(name, kind, (12,), const_value=ir.tensor(each.astype(kind.numpy()), name=name))
        for name, each in WEIGHTS.items()
    ]
    attributes = {"num_groups": GROUPS, "epsilon": EPSILON}
    node = ir.node("GroupNormalization", [x, *weights], attributes, outputs=[y])
    graph = ir.Graph([x], [y], nodes=[node], initializers=weights, opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=11)


def normalised(x):
    """In float64, by the definition."""
    groups = x.astype(np.float64).reshape(len(x), GROUPS, -1)
    mean, variance = groups.mean(-1, keepdims=True), groups.var(-1, keepdims=True)
    y = ((groups - mean) / np.sqrt(variance + EPSILON)).reshape(x.shape)
    scale, bias = (each.reshape(-1, *(1,) * (x.ndim - 2)) for each in WEIGHTS.values())
    return y * scale + bias


def check_numbers(model, offset):
    """Asserts that a model of one group norm gives its numbers for values of this mean."""
    rank = len(model.graph.inputs[0].shape)
    sizes = (2, 12, 8, 6)[:rank]
    x = np.random.default_rng(0).standard_normal(sizes, np.float32) + np.float32(offset)
    raw = ir.to_proto(model).SerializeToString()
    (made,) = onnxruntime.InferenceSession(raw).run(None, {"x": x})
    # of float32 at `offset`: means of squares would lose all but two of their digits at 100
    np.testing.assert_allclose(made, normalised(x), rtol=1e-5, atol=2e-6 + 4e-7 * offset)


@pytest.mark.parametrize("shape", [("batch", 12, "height", "width"), ("batch", 12, "tokens")])
@pytest.mark.parametrize("offset", [0, 100])
def test_the_numbers_are_the_definitions_whatever_the_mean(shape, offset):
    model = group_norm(*shape)
    expand_group_norms(model)
    assert "GroupNormalization" not in [node.op_type for node in model.graph]
    check_numbers(model, offset)


def test_sixteen_bits_keep_the_operator():
    model = group_norm("batch", 12, "height", "width", kind=ir.DataType.FLOAT16)
    expand_group_norms(model)
    assert [node.op_type for node in model.graph] == ["GroupNormalization"]


def test_constants_are_shared_by_all():
    model = group_norm("batch", 12, "height", "width")
    (node,) = model.graph
    again = ir.node("GroupNormalization", [node.outputs[0], *node.inputs[1:]], node.attributes)
    again.outputs[0].name, again.outputs[0].type = "z", ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(again)
    expand_group_norms(model)
    once = len(model.graph.initializers)
    single = group_norm("batch", 12, "height", "width")
    expand_group_norms(single)
    assert once == len(single.graph.initializers)
