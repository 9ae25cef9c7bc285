"""Self-attention without stored scores: which layers, the same results, and memory."""

from __future__ import annotations

import resource
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from eri_export.graphs.passes.cpu.flash_attention import fuse_attention

HEADS = "q_num_heads=2, kv_num_heads=2"
BODY = """
    q = Sin(x)
    k = Cos({source})
    v = Neg({source})
    y = Attention<{attributes}>({inputs})
"""


def model(*, source="h", attributes=HEADS, inputs="q, k, v"):
    body = BODY.format(source=source, attributes=attributes, inputs=inputs)
    text = f"""
        <ir_version: 10, opset_import: ["" : 23]>
        g (float[B, T, 8] given, float[B, L, 8] text, float[B, 2, T, T] mask) => (float[B, T, 8] y)
        {{ h = Neg(given)
           x = Identity(h)
           {body} }}
    """
    return ir.from_proto(onnx.parser.parse_model(text))


def run(made, tokens=5):
    session = onnxruntime.InferenceSession(ir.to_proto(made).SerializeToString())
    rng = np.random.default_rng(1)
    sizes = {"B": 3, "T": tokens, "L": 7}
    feeds = {
        each.name: rng.standard_normal([sizes.get(d, d) for d in each.shape], np.float32)
        for each in session.get_inputs()
    }
    return session.run(None, feeds)[0]


def fused(made):
    form = made.clone()
    fuse_attention(form)
    return form, Counter(node.op_type for node in form.graph)["MultiHeadAttention"]


@pytest.mark.parametrize("scale", ["", ", scale=0.3"])
def test_self_attention_is_fused_and_computes_the_same(scale):
    plain = model(attributes=HEADS + scale)
    form, count = fused(plain)
    assert count == 1
    # sums in another order
    np.testing.assert_allclose(run(form), run(plain), rtol=0, atol=1e-6)


def test_the_scale_counts():
    one, other = (fused(model(attributes=f"{HEADS}, scale={s}"))[0] for s in ("0.3", "3.0"))
    assert np.abs(run(one) - run(other)).max() > 0.01


@pytest.mark.parametrize(
    "words",
    [
        {"source": "text"},
        {"inputs": "q, k, v, mask"},
        {"attributes": f"{HEADS}, is_causal=1"},
        {"attributes": f"{HEADS}, softcap=2.0"},
        {"attributes": "q_num_heads=2, kv_num_heads=1"},
    ],
    ids=["cross-attention", "mask", "causal", "softcap", "grouped"],
)
def test_other_attention_stays(words):
    if "kv_num_heads=1" in words.get("attributes", ""):
        made = model()
        node = next(node for node in made.graph if node.op_type == "Attention")
        node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", 1)
        assert fused(made)[1] == 0
        return
    plain = model(**words)
    form, count = fused(plain)
    assert count == 0
    assert np.array_equal(run(form), run(plain))


def test_an_image_has_the_same_bits_in_every_batch():
    form, _ = fused(model())
    session = onnxruntime.InferenceSession(ir.to_proto(form).SerializeToString())
    rng = np.random.default_rng(0)
    given = rng.standard_normal((7, 300, 8), np.float32)
    text, mask = np.zeros((7, 1, 8), np.float32), np.zeros((7, 2, 300, 300), np.float32)
    whole = session.run(None, {"given": given, "text": text, "mask": mask})[0]
    for count in (1, 2, 3):
        feeds = {"given": given[:count], "text": text[:count], "mask": mask[:count]}
        assert np.array_equal(session.run(None, feeds)[0], whole[:count])


def test_the_scores_are_not_stored():
    """8192 tokens and two heads have 537 MB of scores."""
    form, _ = fused(model())
    session = onnxruntime.InferenceSession(ir.to_proto(form).SerializeToString())
    given = np.zeros((1, 8192, 8), np.float32)
    feeds = {"given": given, "text": given, "mask": np.zeros((1, 2, 1, 1), np.float32)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    session.run(None, feeds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (peak - before) * 1024 < 8192 * 8192 * 2 * 4 / 8
