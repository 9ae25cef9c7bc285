"""Every component opens on CUDA, and every node but shape arithmetic runs there.

The real ONNX Runtime places the nodes and inserts its copies; only the device is a stand-in.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from benchmarks.cuda_graphs import RESULTS
from tests.support.cuda_stand_in.cases import COMPONENT_CASES, STATIC_CASES, STEP_CASES
from tests.support.cuda_stand_in.measure import run_component, run_step

# what ONNX Runtime computes of the sizes of tensors, on purpose on the host
SHAPE_ARITHMETIC = {
    "Add",
    "Cast",
    "Concat",
    "Div",
    "Equal",
    "Gather",
    "Mul",
    "Reshape",
    "Shape",
    "Slice",
    "Squeeze",
    "Sub",
    "Unsqueeze",
    "Where",
}
RECORDED = {row["graph"]: row for row in json.loads(RESULTS.read_text())["graphs"]}


def check(name, measured):
    placed = measured.placement
    assert placed.copies == 0
    assert set(placed.on_host) <= SHAPE_ARITHMETIC
    assert placed.on_cuda > sum(placed.on_host.values())
    # fewer is better; more is a regression, or is recorded on purpose with `make cuda-graphs`
    recorded = RECORDED[name]
    assert measured.counts["KERNELS"] <= recorded.get("kernels", math.inf)
    assert sum(placed.on_host.values()) <= recorded.get("on_host", math.inf)


@pytest.mark.parametrize("case", COMPONENT_CASES, ids=str)
def test_component(case, device, exported, tmp_path):
    check(str(case), run_component(device, exported(case), tmp_path))


@pytest.mark.parametrize("case", STEP_CASES, ids=str)
def test_step_graph(case, device, exported, tmp_path):
    check(f"{case}-step", run_step(device, exported(case), tmp_path))


@pytest.mark.parametrize("case", STATIC_CASES, ids=str)
def test_fixed_sizes_cost_no_kernels(case, device, exported, tmp_path):
    static, dynamic = (
        run_step(device, exported(each), tmp_path).counts["KERNELS"]
        for each in (case, replace(case, static=False))
    )
    assert static <= dynamic
