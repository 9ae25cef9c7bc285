"""Weights become inputs and initialisers again: renamed, the used ones only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnxscript.optimizer import optimize_ir
from torch._subclasses.fake_tensor import FakeTensorMode

from eri_export.graphs.passes.hidden_weights import hide_weights, restore_weights, weights_of
from eri_runtime.errors import ExportError


class FakeBacked:
    """What torch's exporter makes of a fake parameter: a tensor whose `raw` has no bytes."""

    dtype, shape, name = ir.DataType.FLOAT, ir.Shape([3, 2]), None

    def __init__(self, raw):
        self.raw = raw


@pytest.fixture
def model():
    """y = x·wᵀ + one + x·tiedᵀ, with an unused u."""
    with FakeTensorMode():
        fake = FakeBacked(torch.empty(3, 2))
    x, y = ir.val("x", ir.DataType.FLOAT, ["N", 2]), ir.val("y", ir.DataType.FLOAT, ["N", 3])
    w, tied, u = (
        ir.val(name, ir.DataType.FLOAT, [3, 2], const_value=fake)
        for name in ("net.w", "net.tied", "net.u")
    )
    one = ir.val(
        "one", ir.DataType.FLOAT, [3], const_value=ir.tensor(np.float32([1, 2, 3]), name="one")
    )
    turned = [ir.node("Transpose", [value], {"perm": [1, 0]}) for value in (w, tied)]
    first, second = (ir.node("MatMul", [x, node.outputs[0]]) for node in turned)
    add = ir.node("Add", [first.outputs[0], one])
    last = ir.node("Add", [add.outputs[0], second.outputs[0]], outputs=[y])
    graph = ir.Graph(
        [x],
        [y],
        nodes=[*turned, first, second, add, last],
        initializers=[w, tied, u, one],
        opset_imports={"": 23},
        name="g",
    )
    return ir.Model(graph, ir_version=11)


NAMES = {"net.w": "file.w", "net.tied": "file.w", "net.u": "file.u"}


def test_hidden_weights_are_inputs_and_constants_stay(model):
    hide_weights(model)
    assert [value.name for value in model.graph.inputs] == ["x", "net.w", "net.tied", "net.u"]
    assert list(model.graph.initializers) == ["one"]


def test_the_optimizer_does_not_fold_them(model):
    hide_weights(model)
    optimize_ir(model)
    assert "Transpose" in [node.op_type for node in model.graph]


def test_restored_weights_have_the_files_names_and_unused_ones_are_gone(model):
    restore_weights(model, hide_weights(model), NAMES)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [value.name for value in weights_of(model)] == ["file.w"]


def test_a_buffer_that_no_file_holds_is_an_error(model):
    with pytest.raises(ExportError, match=r"net\.w"):
        restore_weights(model, hide_weights(model), {"net.tied": "file.w"})


def test_two_weights_of_one_name_become_one(model):
    restore_weights(model, hide_weights(model), NAMES)
    (weight,) = weights_of(model)
    assert [use.node.op_type for use in weight.uses()] == ["Transpose", "Transpose"]
