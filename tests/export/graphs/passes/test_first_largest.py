"""The first of the largest ids, by an operator that CUDA has for integers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from eri_export.graphs.passes.first_largest import expand_first_largest

TOKENS, END = 77, 49407


def argmax(kind="int64", attributes="axis=-1, keepdims=0", tokens=TOKENS):
    return ir.from_proto(
        onnx.parser.parse_model(f"""
            <ir_version: 10, opset_import: ["" : 23]>
            g ({kind}[B, {tokens}] ids) => (int64[B] first)
            {{ first = ArgMax<{attributes}>(ids) }}
        """)
    )


def narrowed():
    """What the tracer writes: the ids as int32."""
    return ir.from_proto(
        onnx.parser.parse_model(f"""
            <ir_version: 10, opset_import: ["" : 23]>
            g (int64[B, {TOKENS}] ids) => (int64[B] first)
            {{
                narrow = Cast<to=6>(ids)
                first = ArgMax<axis=-1, keepdims=0>(narrow)
            }}
        """)
    )


def operators(model):
    return [node.op_type for node in model.graph]


def prompts():
    """Rows that end in one, some and only end tokens."""
    ids = np.random.default_rng(0).integers(0, END, (4, TOKENS))
    for row, length in zip(ids, (TOKENS - 1, 5, 1, 0), strict=True):
        row[length:] = END
    return ids


@pytest.mark.parametrize("model", [argmax(), argmax("int32"), narrowed()])
def test_it_is_argmaxs_position_whatever_repeats(model):
    kind = "int32" if model.graph.inputs[0].dtype == ir.DataType.INT32 else "int64"
    ids = prompts().astype(kind)
    expand_first_largest(model)
    assert "ArgMax" not in operators(model)
    (made,) = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(
        None, {"ids": ids}
    )
    np.testing.assert_array_equal(made, ids.argmax(-1))
    assert made.tolist() == [TOKENS - 1, 5, 1, 0]


@pytest.mark.parametrize(
    "model",
    [
        argmax("float"),
        argmax(attributes="axis=0, keepdims=0"),
        argmax(attributes="axis=-1, keepdims=0, select_last_index=1"),
        argmax(tokens="T"),
    ],
)
def test_another_argmax_stays(model):
    expand_first_largest(model)
    assert operators(model) == ["ArgMax"]
