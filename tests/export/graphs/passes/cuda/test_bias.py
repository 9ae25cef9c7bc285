"""A linear layer's bias moves into what reads the layer, where ONNX Runtime has an operator."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from eri_export.graphs.passes.cuda.bias import fuse_biases
from tests.support.contrib_operators import write_out

WIDTH = 8


def model(body, width=WIDTH, outputs="float[N, T, M] y", kind="float"):
    """Operators on `p` = x·w and the vector `b`, whose names the body uses."""
    made = ir.from_proto(
        onnx.parser.parse_model(f"""
            <ir_version: 10, opset_import: ["" : 23]>
            g ({kind}[N, T, 4] x, {kind}[N, T, {width}] s, {kind}[4, {width}] w) => ({outputs})
            {{ p = MatMul(x, w) {body} }}
        """)
    )
    rng = np.random.default_rng(0)
    dtype = ir.DataType.FLOAT if kind == "float" else ir.DataType.BFLOAT16
    for name in ("b", "scale", "shift"):
        array = rng.standard_normal(width).astype(dtype.numpy())
        reader = next((n for n in made.graph for v in n.inputs if v and v.name == name), None)
        if reader is None:
            continue
        value = ir.val(name, dtype, (width,), const_value=ir.tensor(array, name=name))
        for node in made.graph:
            for index, each in enumerate(node.inputs):
                if each is not None and each.name == name:
                    node.replace_input_with(index, value)
        made.graph.initializers.add(value)
    return made


def run(made):
    rng = np.random.default_rng(1)
    session = onnxruntime.InferenceSession(ir.to_proto(made).SerializeToString())
    width = session.get_inputs()[1].shape[-1]
    shapes = {"x": (2, 3, 4), "s": (2, 3, width), "w": (4, width)}
    return session.run(
        None, {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    )


GEGLU = """
    a = Add(p, b)
    l, r = Split<axis=-1, num_outputs=2>(a)
    g = Gelu(r)
    y = Mul(l, g)
"""
NORM = """
    a = Add(p, b)
    t = Add(s, a)
    n = LayerNormalization<axis=-1, epsilon=0.01>(t, scale, shift)
    y = Neg(n)
    z = Neg(t)
"""
BOTH = f"float[N, T, {WIDTH}] y, float[N, T, {WIDTH}] z"


@pytest.mark.parametrize(
    ("body", "width", "outputs", "fused"),
    [
        ("a = Add(p, b) y = Gelu(a)", WIDTH, "float[N, T, M] y", "BiasGelu"),
        (
            'a = Add(b, p) y = Gelu<approximate="tanh">(a)',
            WIDTH,
            "float[N, T, M] y",
            "FastGelu",
        ),
        (GEGLU, 2560, "float[N, T, M] y", "BiasSplitGelu"),
        (NORM, WIDTH, BOTH, "SkipLayerNormalization"),
    ],
)
def test_it_is_fused_and_gives_the_same(body, width, outputs, fused):
    made = model(body, width, outputs)
    expected = run(made)
    fuse_biases(made)
    RemoveUnusedNodesPass()(made)
    assert [node.op_type for node in made.graph if node.domain] == [fused]
    assert not {"Add", "Gelu", "LayerNormalization"} & {node.op_type for node in made.graph}
    assert made.opset_imports["com.microsoft"] == 1
    write_out(made)
    for ours, theirs in zip(run(made), expected, strict=True):
        # the same float32 operations, but for the order of a sum of three
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (GEGLU, "float[N, T, M] y"),  # BiasSplitGelu has no kernel for 8 channels
        (GEGLU.replace("Mul(l, g)", "Mul(r, g)"), "float[N, T, M] y"),
        ("a = Add(p, b) y = Gelu(a) z = Neg(a)", BOTH),
        ("a = Add(p, s) y = Gelu(a)", "float[N, T, M] y"),
    ],
)
def test_other_forms_stay(body, outputs):
    made = model(body, outputs=outputs)
    before = [node.op_type for node in made.graph]
    fuse_biases(made)
    assert [node.op_type for node in made.graph] == before


def test_bfloat16_has_no_split_gelu():
    made = model(GEGLU, 2560, "bfloat16[N, T, M] y", kind="bfloat16")
    fuse_biases(made)
    assert not [node for node in made.graph if node.domain]
