"""Group norms as InstanceNormalization give the definition's numbers."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from eri_export.graphs.passes.cpu.instance_norm import fuse_group_norms
from eri_export.graphs.passes.group_norm import expand_group_norms
from tests.export.graphs.passes.test_group_norm import check_numbers, group_norm


@pytest.mark.parametrize("shape", [("batch", 12, "height", "width"), ("batch", 12, "tokens")])
@pytest.mark.parametrize("offset", [0, 100])
def test_the_numbers_are_the_definitions_whatever_the_mean(shape, offset):
    model = group_norm(*shape)
    expand_group_norms(model)
    fuse_group_norms(model)
    RemoveUnusedNodesPass()(model)
    operators = [node.op_type for node in model.graph]
    assert operators.count("InstanceNormalization") == 1
    assert not {"Sub", "ReduceMean", "Expand"} & {*operators}
    check_numbers(model, offset)


@pytest.mark.parametrize("other", ["Sub", "Mul", "Div"])
def test_what_only_looks_like_one_stays(other):
    """A graph that reads another tensor in one place is another function."""
    model = group_norm("batch", 12, "height", "width")
    expand_group_norms(model)
    x = model.graph.inputs[0]
    changed = next(node for node in model.graph if node.op_type == other)
    if other == "Sub":
        means = next(node for node in model.graph if node.op_type == "ReduceMean")
        negative = ir.node("Neg", [x])
        negative.outputs[0].name = "negative"
        model.graph.insert_before(means, [negative])
        means.replace_input_with(0, negative.outputs[0])
    elif other == "Mul":
        changed.replace_input_with(1, x)  # d·x instead of d²
    else:
        changed.replace_input_with(1, changed.inputs[0])
    before = [node.op_type for node in model.graph]
    fuse_group_norms(model)
    assert [node.op_type for node in model.graph] == before
