"""Attention with tokens before heads: no transposes are left, and it computes the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from eri_export.graphs.passes.merge_heads import merge_heads

BEFORE = """
    qh = Reshape(q, heads)
    qt = Transpose<perm=[0, 2, 1, 3]>(qh)
    kh = Reshape(k, heads)
    kt = Transpose<perm=[0, 2, 1, 3]>(kh)
    vh = Reshape(v, heads)
    vt = Transpose<perm=[0, 2, 1, 3]>(vh)
"""
AFTER = """
    yt = Transpose<perm=[0, 2, 1, 3]>(ya)
    ym = Reshape(yt, merged)
    y = Neg(ym)
"""
PLAIN = "ya = Attention(qt, kt, vt)"
NORMS = """
    qn = RMSNormalization<axis=-1, epsilon=0.001>(qt, scale)
    kn = RMSNormalization<axis=-1, epsilon=0.001>(kt, scale)
    ya = Attention<scale=0.3>(qn, kn, vt)
"""
JOINED = """
    qj = Concat<axis=2>(qt, kt)
    vj = Concat<axis=2>(vt, vt)
    ya = Attention(qj, qj, vj)
"""
TURNED = """
    qr = RotaryEmbedding<interleaved=1>(qt, cos, sin)
    kr = RotaryEmbedding<interleaved=1>(kt, cos, sin)
    ya = Attention(qr, kr, vt)
"""


def model(body):
    text = f"""
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[B, T, 8] q, float[B, T, 8] k, float[B, T, 8] v, float[B, T, 2] cos,
           float[B, T, 2] sin) => (float[B, S, 8] y)
        <int64[4] heads = {{0, 0, 2, 4}}, int64[3] merged = {{0, 0, 8}},
         float[4] scale = {{1, 2, 0.5, 1}}>
        {{ {body} }}
    """
    return ir.from_proto(onnx.parser.parse_model(text))


def run(made):
    rng = np.random.default_rng(0)
    raw = ir.to_proto(made).SerializeToString()
    session = onnxruntime.InferenceSession(raw)
    shapes = {"q": (2, 5, 8), "k": (2, 5, 8), "v": (2, 5, 8), "cos": (2, 5, 2), "sin": (2, 5, 2)}
    feeds = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("body", [PLAIN, NORMS, JOINED, TURNED])
def test_no_transpose_is_left_and_it_computes_the_same(body):
    made = model(BEFORE + body + AFTER)
    expected = run(made)
    merge_heads(made)
    RemoveUnusedNodesPass()(made)
    operators = Counter(node.op_type for node in made.graph)
    assert operators["Transpose"] == 0
    (attention,) = (node for node in made.graph if node.op_type == "Attention")
    assert attention.attributes["q_num_heads"].as_int() == 2
    # the same products in another layout, so another order of sums
    np.testing.assert_allclose(run(made), expected, rtol=1e-5, atol=1e-6)


def test_an_output_that_is_read_otherwise_keeps_its_axes():
    made = model(BEFORE + "yh = Attention(qt, kt, vt) ya = Neg(yh)" + AFTER)
    expected = run(made)
    merge_heads(made)
    (attention,) = (node for node in made.graph if node.op_type == "Attention")
    assert attention.attributes["kv_num_heads"].as_int() == 2
    np.testing.assert_allclose(run(made), expected, rtol=1e-5, atol=1e-6)
