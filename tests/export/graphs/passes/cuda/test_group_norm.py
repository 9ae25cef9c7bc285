"""Group norms of both forms become ONNX Runtime's operator, with SiLU and channels last."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from eri_export.graphs.passes.cuda.group_norm import fuse_group_norms
from eri_export.graphs.passes.group_norm import expand_group_norms
from tests.support.contrib_operators import write_out

CHANNELS, GROUPS, EPSILON = 12, 2, 1e-3
SILU = "g = Sigmoid(n) y = Mul(n, g)"
SHAPES = {"N, 12, H, W": (2, 12, 5, 3), "N, 12, T": (2, 12, 7)}


def norm(shape, after, kind="float", groups=GROUPS):
    """A norm of `x` whose result `n` is read by `after`."""
    model = ir.from_proto(
        onnx.parser.parse_model(f"""
            <ir_version: 10, opset_import: ["" : 23]>
            g ({kind}[{shape}] x) => ({kind}[{shape}] y)
            <{kind}[12] scale = {{{", ".join(["1"] * 12)}}},
             {kind}[12] bias = {{{", ".join(["0"] * 12)}}}>
            {{
                n = GroupNormalization<num_groups={groups}, epsilon={EPSILON}>(x, scale, bias)
                {after}
            }}
        """)
    )
    for name, start in (("scale", 0.5), ("bias", -1.0)):
        value = model.graph.initializers[name]
        array = np.linspace(start, 2, CHANNELS).astype(value.dtype.numpy())
        value.const_value = ir.tensor(array, name=name)
    return model


def run(model, x):
    raw = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(raw).run(None, {"x": x})[0]


def fused(model):
    return [node for node in model.graph if node.op_type == "GroupNorm"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("after", "activation"),
    [(SILU, 1), ("y = Neg(n)", 0), ("g = Sigmoid(n) m = Mul(n, g) y = Add(m, n)", 0)],
)
@pytest.mark.parametrize("expanded", [False, True])
def test_it_is_one_operator_and_gives_the_same(shape, after, activation, expanded):
    x = np.random.default_rng(0).standard_normal(SHAPES[shape], np.float32) + 2
    model = norm(shape, after)
    if expanded:
        expand_group_norms(model)
    expected = run(model, x)
    fuse_group_norms(model)
    (node,) = fused(model)
    assert node.attributes["activation"].as_int() == activation
    assert node.attributes["groups"].as_int() == GROUPS
    assert node.attributes["epsilon"].as_float() == pytest.approx(EPSILON)
    write_out(model)
    # float32 means in another order
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "casts"), [("float16", 2), ("bfloat16", 4)])
def test_scale_and_bias_are_float32_and_bfloat16_is_normalised_in_it(kind, casts):
    model = norm("N, 12, H, W", SILU, kind)
    fuse_group_norms(model)
    (node,) = fused(model)
    assert all(value.producer().op_type == "Cast" for value in node.inputs[1:])
    made = [each.op_type for each in model.graph]
    assert made.count("Cast") == casts
    raw = ir.to_proto(model).SerializeToString()
    (output,) = onnx.load_from_string(raw).graph.output
    assert output.type.tensor_type.elem_type == getattr(onnx.TensorProto, kind.upper())


def summed(skip, after):
    """A norm of x + s, where `skip` makes s."""
    model = ir.from_proto(
        onnx.parser.parse_model(f"""
            <ir_version: 10, opset_import: ["" : 23]>
            g (float[2, 12, 5, 3] x, float[2, 12, 5, 3] image, float[2, 12] vector)
                => (float[2, 12, 5, 3] y)
            <float[12] scale = {{{", ".join(["2"] * 12)}}},
             float[12] bias = {{{", ".join(["1"] * 12)}}}, int64[2] axes = {{2, 3}}>
            {{
                {skip}
                t = Add(s, x)
                n = GroupNormalization<num_groups={GROUPS}, epsilon={EPSILON}>(t, scale, bias)
                {after}
            }}
        """)
    )
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.standard_normal(tuple(value.shape), np.float32)
        for value in model.graph.inputs
    }
    return model, lambda: onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(
        None, feeds
    )[0]


@pytest.mark.parametrize("skip", ["s = Identity(image)", "s = Unsqueeze(vector, axes)"])
@pytest.mark.parametrize("after", ["y = Neg(n)", "m = Neg(n) y = Add(t, m)"])
def test_a_residual_or_a_time_embedding_is_added_in_the_norm(skip, after):
    model, run = summed(skip, after)
    expected = run()
    fuse_group_norms(model)
    RemoveUnusedNodesPass()(model)
    operators = [node.op_type for node in model.graph]
    assert operators.count("SkipGroupNorm") == 1
    assert operators.count("Add") == after.count("Add")
    write_out(model)
    # float32 means in another order
    np.testing.assert_allclose(run(), expected, rtol=1e-5, atol=1e-5)


def test_another_sum_is_not_taken_for_a_norm():
    model, run = summed("s = Identity(image)", "y = Add(n, x)")
    expected = run()
    fuse_group_norms(model)
    assert [node.op_type for node in model.graph].count("SkipGroupNorm") == 1
    write_out(model)
    np.testing.assert_allclose(run(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [4, 12])
def test_groups_of_odd_channels_stay_as_cuda_refuses_them(groups):
    model = norm("N, 12, H, W", SILU, groups=groups)
    fuse_group_norms(model)
    assert [node.op_type for node in model.graph] == ["GroupNormalization", "Sigmoid", "Mul"]
