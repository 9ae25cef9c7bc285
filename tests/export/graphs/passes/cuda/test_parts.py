"""Unequal parts of a tensor, each by a Slice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from eri_export.graphs.passes.cuda.parts import slice_unequal_parts

CONSTANT = "<int64[3] sizes = {1, 4, 2}>"
HEAD = '<ir_version: 10, opset_import: ["" : 23]>'
X = np.arange(2 * 7 * 3, dtype=np.float32).reshape(2, 7, 3)


def parsed(text):
    return ir.from_proto(onnx.parser.parse_model(HEAD + text))


def run(model, **inputs):
    raw = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(raw).run(None, {"x": X, **inputs})


def parts(inputs, sizes, axis):
    outputs = "float[N, A, 3] a, float[N, B, 3] b, float[N, C, 3] c"
    return parsed(f"""g ({inputs}) => ({outputs}) {sizes}
        {{ p, q, r = Split<axis={axis}>(x, sizes) a = Neg(p) b = Neg(q) c = Neg(r) }}""")


def check(model, **inputs):
    expected = run(model, **inputs)
    slice_unequal_parts(model)
    counts = Counter(node.op_type for node in model.graph)
    assert counts["Split"] == 0
    assert counts["Slice"] == 3
    for found, wanted in zip(run(model, **inputs), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("axis", [1, -2])
def test_constant_sizes(axis):
    check(parts("float[N, L, 3] x", CONSTANT, axis))


@pytest.mark.parametrize("sizes", [(1, 4, 2), (0, 7, 0), (5, 1, 1)])
def test_sizes_that_are_computed(sizes):
    model = parts("float[N, L, 3] x, int64[3] sizes", "", 1)
    check(model, sizes=np.array(sizes, np.int64))


@pytest.mark.parametrize(
    "split", ["Split<axis=2, num_outputs=3>(x)", "Split<axis=2>(x, same)"], ids=["number", "sizes"]
)
def test_equal_parts_stay(split):
    outputs = "float[N, L, 1] a, float[N, L, 1] b, float[N, L, 1] c"
    model = parsed(f"""g (float[N, L, 3] x) => ({outputs}) <int64[3] same = {{1, 1, 1}}>
        {{ p, q, r = {split} a = Neg(p) b = Neg(q) c = Neg(r) }}""")
    slice_unequal_parts(model)
    assert "Split" in [node.op_type for node in model.graph]
