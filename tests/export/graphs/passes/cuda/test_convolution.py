"""Convolutions of images with channels last, over the same weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from eri_export.graphs.passes.cuda.convolution import NHWC, put_channels_last
from tests.support.contrib_operators import write_out


def conv(kind="float", bias="", shape="N, 3, H, W", kernel="3, 3"):
    sizes = f"4, 3, {kernel}"
    count = 12 * int(np.prod([int(each) for each in kernel.split(",")]))
    numbers = ", ".join(str(n) for n in range(count))
    return ir.from_proto(
        onnx.parser.parse_model(f"""
            <ir_version: 10, opset_import: ["" : 23]>
            g ({kind}[{shape}] x) => ({kind}[{shape.replace("3", "4")}] y)
            <{kind}[{sizes}] w = {{{numbers}}}, {kind}[4] b = {{1, 2, 3, 4}}>
            {{ c = Conv<strides=[2, 1], pads=[1, 0, 1, 1]>(x, w{bias}) y = Neg(c) }}
        """)
    )


def run(model):
    x = np.random.default_rng(0).standard_normal((2, 3, 7, 6), np.float32)
    raw = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(raw).run(None, {"x": x})[0]


@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize("kernel", ["3, 3", "1, 1"])
def test_it_has_channels_last_and_gives_the_same(bias, kernel):
    model = conv(bias=bias, kernel=kernel)
    expected = run(model)
    put_channels_last(model)
    (node,) = (node for node in model.graph if node.op_type == "Conv")
    assert node.domain == NHWC
    assert [value.name for value in node.inputs[1:]] == (["w", "b"] if bias else ["w"])
    assert tuple(model.graph.initializers["w"].shape)[:2] == (4, 3)
    write_out(model)
    # whole weights and normal pixels: the same products, perhaps summed in another order
    np.testing.assert_allclose(run(model), expected, rtol=1e-5, atol=1e-4)


def test_float16_is_put_last_too_and_bfloat16_stays():
    for kind, domain in (("float16", NHWC), ("bfloat16", "")):
        model = conv(kind)
        put_channels_last(model)
        (node,) = (node for node in model.graph if node.op_type == "Conv")
        assert node.domain == domain
        assert (NHWC in model.opset_imports) == bool(domain)
