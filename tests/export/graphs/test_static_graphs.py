"""A static float16 graph has the fused operators of a dynamic float32 one, and passes the gate."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter

import onnx_ir as ir
import pytest

from eri_export.choices import USUAL_GATE
from eri_export.gate.report import STEP_TOLERANCES
from eri_export.plan.plan import make_plan
from eri_export.progress import silent
from eri_export.publishing import export_bundle as exporter
from eri_runtime.executors.ort.provider import form_of
from tests.support.components import STATIC

FUSED = {
    "Attention",
    "Gelu",
    "GroupNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "RotaryEmbedding",
}
GROUP_NORMS = 21  # of the tiny UNet


def planned(checkpoint, precision, **options):
    plan = make_plan(checkpoint, precision=precision, **options)
    return plan, next(recipe for recipe in plan.recipes if recipe.name == "denoiser")


def fused(checkpoint, precision, **options):
    _, recipe = planned(checkpoint, precision, **options)
    counts = Counter(node.op_type for node in exporter.trace(recipe).graph)
    return {op: count for op, count in counts.items() if op in FUSED}


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("sdxl", {"Attention", "Gelu", "GroupNormalization", "LayerNormalization"}),
        ("sd35", {"Attention", "Gelu", "LayerNormalization", "RMSNormalization"}),
        (
            "flux",
            {"Attention", "Gelu", "LayerNormalization", "RMSNormalization", "RotaryEmbedding"},
        ),
    ],
)
def test_static_denoisers_have_the_fused_operators_of_dynamic_ones(request, family, expected):
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    static = fused(checkpoint, "fp16", ranges=STATIC)
    dynamic = fused(checkpoint, "fp32")
    if family == "sdxl":  # float32 norms of groups are written out, see `expand_group_norms`
        dynamic["GroupNormalization"] = GROUP_NORMS
    assert static == dynamic
    assert static.keys() == expected


def test_tracing_a_static_text_encoder_warns_of_nothing(sd35_checkpoint):
    plan = make_plan(sd35_checkpoint, ranges=STATIC)
    recipe = next(recipe for recipe in plan.recipes if recipe.name == "text_encoder_3")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exporter.trace(recipe)
    assert [str(each.message) for each in caught if each.category is RuntimeWarning] == []


def test_a_static_denoiser_in_float16_passes_the_gate(sdxl_checkpoint, tmp_path):
    """Its step graph and bare graph fuse differently: 1e-4, which is a few float16 roundings."""
    plan, recipe = planned(sdxl_checkpoint, "fp16", ranges=STATIC)
    folder = dataclasses.replace(plan.bundle, root=tmp_path)
    exported = exporter._component(recipe, recipe, folder, None, USUAL_GATE, silent)
    report = exported.compared.report
    steps = {each.subject: each for each in report.metrics if each.case == "step"}
    assert report.passed
    assert steps.keys() == {"graph", "float32 twin"}
    for subject, metric in steps.items():
        assert metric.tolerance == STEP_TOLERANCES["fp16", subject]
    assert steps["float32 twin"].tolerance < 1e-4 < steps["graph"].tolerance
    for graph in (exported.spec.graph, exported.spec.step):
        form = ir.load(form_of(tmp_path / graph, "cuda"))
        assert {node.domain for node in form.graph} >= {"com.microsoft"}
        assert [value.name for value in form.graph.inputs] == [
            value.name for value in ir.load(tmp_path / graph).graph.inputs
        ]
