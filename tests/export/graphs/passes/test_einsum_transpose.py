"""An Einsum that reorders becomes a Transpose; one that computes stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eri_export.graphs.passes.einsum_transpose import transpose_einsums


def einsum(equation, *shapes):
    """A model of one Einsum, whose result is also the graph's output."""
    inputs = [ir.val(f"x{i}", ir.DataType.FLOAT, shape) for i, shape in enumerate(shapes)]
    output = ir.val("y", ir.DataType.FLOAT)
    node = ir.node("Einsum", inputs, {"equation": equation}, outputs=[output])
    graph = ir.Graph(inputs, [output], nodes=[node], opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=11)


def run(model, x):
    raw = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x0": x})[0]


@given(st.permutations("nhwpq"))
def test_a_reordering_is_a_transpose_of_the_same_result(letters):
    equation = f"nhwpq->{''.join(letters)}"
    model = einsum(equation, (2, 3, 4, 5, 6))
    transpose_einsums(model)
    assert [node.op_type for node in model.graph] == ["Transpose"]
    x = np.arange(720, dtype=np.float32).reshape(2, 3, 4, 5, 6)
    np.testing.assert_array_equal(run(model, x), np.einsum(equation, x))


@pytest.mark.parametrize("equation", ["ij->i", "ii->i", "ij", "...i->i..."])
def test_an_equation_that_does_more_stays(equation):
    model = einsum(equation, (3, 3))
    transpose_einsums(model)
    assert [node.op_type for node in model.graph] == ["Einsum"]


def test_two_operands_stay():
    model = einsum("ij,jk->ik", (2, 3), (3, 4))
    transpose_einsums(model)
    assert [node.op_type for node in model.graph] == ["Einsum"]
