"""Real plans of every graph of every family, fp16 and fp32, and of the embedded checkpoint, fp16.

Built by TensorRT for RTX for two GPUs that are not here, and read as bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import tensorrt_rtx

from eri_export.tensorrt import BuildOptions, add_plans
from eri_runtime.bundle import manifest
from eri_runtime.bundle.integrity import verify_all
from tests.support.plans import CAPABILITIES, ENDS, attention_nodes, bundle_of, inputs, packed, read

FAMILIES = ("sdxl", "sd35", "flux")
CASES = [*(f"{f}-{p}" for f in FAMILIES for p in ("fp32", "fp16")), "embedded-fp16"]
# head sizes of the tiny networks that the fused kernel does not serve
TOO_SMALL = {("sd35", "denoiser"), ("sd35", "text_encoder_3"), ("flux", "text_encoder_2")}
EMBEDDED = ("best", "range")  # a profile more takes half as long again, so the others have one
TINY = ("range",)


def profiles_of(family):
    return EMBEDDED if family == "embedded" else TINY


@pytest.fixture(scope="module", params=CASES)
def planned(request, tmp_path_factory):
    """A bundle with a plan of each of its graphs; the family and the precision."""
    family, precision = request.param.split("-")
    root = bundle_of(request, family, precision, tmp_path_factory.mktemp("engines") / family)
    options = BuildOptions(capabilities=CAPABILITIES, profiles=profiles_of(family))
    add_plans(root, options)
    return manifest.read(root), family, precision


def test_every_graph_has_a_plan_for_both_gpus(planned):
    bundle, _, _ = planned
    verify_all(bundle)
    graphs = {spec.graph: name for name, spec in bundle.components.items()}
    graphs |= {spec.step: f"{name}-step" for name, spec in bundle.components.items() if spec.step}
    version = ".".join(tensorrt_rtx.__version__.split(".")[:3])
    assert {plan.graph: file for file, plan in bundle.plans.items()} == {
        graph: f"plans/{name}-sm86-sm89-rtx{version}.plan" for graph, name in graphs.items()
    }
    for plan in bundle.plans.values():
        assert plan.engine == "tensorrt-rtx"
        assert plan.version == tensorrt_rtx.__version__
        assert plan.capabilities == CAPABILITIES


def test_a_plan_holds_the_names_and_the_profiles_of_its_graph(planned):
    bundle, family, _ = planned
    for _, plan, data in read(bundle.root):
        shapes = inputs(bundle, plan)
        dynamic = {d for shape in shapes.values() for d in shape if isinstance(d, str)}
        assert len(plan.profiles) == len(profiles_of(family))
        best, every = plan.profiles[0], plan.profiles[-1]
        assert best.keys() == every.keys() == dynamic
        ranges = bundle.components[plan.component].ranges
        for dimension, sizes in every.items():
            assert sizes == ranges.get(dimension, sizes)
            assert best is every or {*asdict(best[dimension]).values()} == {sizes.opt}
        for name, shape in shapes.items():
            assert name.encode() in data
            if len(shape) > 2:  # fewer numbers may be there by chance
                held = [packed(shape, p, end) in data for p in plan.profiles for end in ENDS]
                assert all(held), (plan.graph, name)


def test_attention_fuses_in_16_bits_and_never_in_32(planned):
    bundle, family, precision = planned
    for _, plan, data in read(bundle.root):
        nodes = attention_nodes(bundle, plan)
        spec = bundle.components[plan.component]
        fuses = spec.precision == "fp16" and (family, plan.component) not in TOO_SMALL
        assert plan.attention == len(nodes) > 0
        assert plan.fused == (len(nodes) if fuses else 0), plan.graph
        if precision == "fp32" or family == "embedded":  # other kernels serve fixed sizes
            assert (b"fmha_batch=" in data) == fuses


def test_the_report_names_every_attention_layer(planned):
    bundle, _, _ = planned
    for file, plan in bundle.plans.items():
        report = json.loads(bundle.path(file).with_suffix(".json").read_text())["attention"]
        assert {layer["name"] for layer in report} == set(attention_nodes(bundle, plan))
        assert sum(layer["fused"] for layer in report) == plan.fused
        kinds = {"HALF": "fp16", "FLOAT": "fp32"}
        assert {kinds[layer["dtype"]] for layer in report} == {
            bundle.components[plan.component].precision
        }
