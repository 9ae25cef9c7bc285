"""Nearest upsampling as copies has Resize's bits; another Resize stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from eri_export.graphs.passes.nearest_upsample import expand_upsampling

NEAREST = 'mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"'
OPEN, FIXED = "N, 3, H, W", "2, 3, 5, 4"


def resize(shape, scales, attributes=NEAREST):
    return ir.from_proto(
        onnx.parser.parse_model(f"""
            <ir_version: 10, opset_import: ["" : 23]>
            g (float[{shape}] x) => (float[n, c, h, w] y)
            <float[4] scales = {{{scales}}}>
            {{ y = Resize<{attributes}>(x, , scales) }}
        """)
    )


def operators(model):
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("shape", [OPEN, FIXED])
@pytest.mark.parametrize("scales", ["1, 1, 2, 2", "1, 1, 3, 1"])
def test_every_bit_is_resizes(shape, scales):
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4), np.float32)
    model = resize(shape, scales)
    (wanted,) = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(
        None, {"x": x}
    )
    expand_upsampling(model)
    assert "Resize" not in operators(model)
    assert ("Shape" in operators(model)) == (shape == OPEN)
    model.graph.initializers.pop("scales")
    (made,) = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(
        None, {"x": x}
    )
    np.testing.assert_array_equal(made, wanted)


@pytest.mark.parametrize(
    ("scales", "attributes"),
    [
        ("1, 1, 1.5, 2", NEAREST),
        ("2, 1, 2, 2", NEAREST),
        ("1, 1, 2, 2", NEAREST.replace("floor", "ceil")),
        ("1, 1, 2, 2", NEAREST.replace("asymmetric", "half_pixel")),
        ("1, 1, 2, 2", 'mode="linear"'),
    ],
)
def test_another_resize_stays(scales, attributes):
    model = resize(OPEN, scales, attributes)
    expand_upsampling(model)
    assert operators(model) == ["Resize"]


def test_a_resize_to_a_size_stays():
    model = ir.from_proto(
        onnx.parser.parse_model(f"""
            <ir_version: 10, opset_import: ["" : 23]>
            g (float[N, 3, H, W] x, int64[4] sizes) => (float[n, c, h, w] y)
            {{ y = Resize<{NEAREST}>(x, , , sizes) }}
        """)
    )
    expand_upsampling(model)
    assert operators(model) == ["Resize"]


def test_other_types_stay_if_one_is_asked_for():
    model = resize(OPEN, "1, 1, 2, 2")
    expand_upsampling(model, (ir.DataType.BFLOAT16,))
    assert operators(model) == ["Resize"]
    expand_upsampling(model, (ir.DataType.FLOAT,))
    assert "Resize" not in operators(model)
