"""Inputs, outputs and dimensions take the contract's names."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from eri_export.graphs.passes.rename_interface import name_interface
from eri_runtime.bundle.spec import TensorSpec
from eri_runtime.errors import ExportError

INPUT = TensorSpec(name="sample", dtype="float32", shape=("batch", 4))
OUTPUT = TensorSpec(name="output", dtype="float32", shape=("batch", 4))


@pytest.fixture
def model():
    """An inner value already has the name that the output is to get."""
    return ir.from_onnx_text(
        """
        <ir_version: 11, opset_import: ["" : 23]>
        g (float[s0, 4] arg0) => (float[s0, 4] neg_1)
        {
            output = Relu(arg0)
            neg_1 = Neg(output)
        }
        """
    )


def test_names_and_dimensions(model):
    name_interface(model, [INPUT], [OUTPUT])
    (given,), (made,) = model.graph.inputs, model.graph.outputs
    assert (given.name, made.name) == ("sample", "output")
    assert given.shape == made.shape == ir.Shape(["batch", 4])


def test_inner_values_make_way(model):
    name_interface(model, [INPUT], [OUTPUT])
    names = [value.name for node in model.graph for value in node.outputs]
    assert names == ["output_inner", "output"]


@pytest.mark.parametrize("changes", [{"dtype": "int64"}, {"shape": ("batch", 4, 1)}])
def test_a_type_or_rank_that_differs_is_an_error(model, changes):
    fields = {"name": "sample", "dtype": "float32", "shape": ("batch", 4), **changes}
    with pytest.raises(ExportError, match="sample"):
        name_interface(model, [TensorSpec(**fields)], [OUTPUT])
