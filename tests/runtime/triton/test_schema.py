"""Configurations are what Triton's schema allows, and say what the graphs are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format

from eri_runtime.bundle import PlanSpec, manifest
from eri_runtime.bundle.spec import Bundle
from eri_runtime.errors import BackendError, ManifestError
from eri_runtime.triton.component_models import onnx_model, plan_model
from eri_runtime.triton.config import ModelConfig, Tensor, config_text
from tests.support.triton_schema import parse

TENSOR = Tensor(name="x", data_type="TYPE_FP32", dims=(-1, 3))
CONFIG = ModelConfig(name="m", backend="python", file="f", inputs=(TENSOR,), outputs=(TENSOR,))
PROFILE: dict = {}


def plan(**words) -> PlanSpec:
    """A plan of the denoiser's graph."""
    given = {
        "component": "denoiser",
        "graph": "denoiser/model.onnx",
        "engine": "tensorrt",
        "version": "10.9.0.34",
        "capabilities": ("8.9",),
        "profiles": (PROFILE,),
        "flags": (),
        "level": 3,
        "workspace": None,
        "attention": 0,
        "fused": 0,
    }
    return PlanSpec(**{**given, **words})


def with_plans(folder: Path, **plans: PlanSpec) -> Bundle:
    return replace(manifest.read(folder), plans=plans)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("backend", "backnd"), "no field named"),
        (("TYPE_FP32", "TYPE_FLOAT"), "no value named TYPE_FLOAT"),
        (('"f"', "7"), "Expected string"),
        (("max_batch_size: 0", "max_batch_size: 0.5"), "Couldn't parse integer"),
    ],
)
def test_the_check_finds_what_triton_would_refuse(change, message):
    right = config_text(CONFIG)
    parse(right)
    with pytest.raises(text_format.ParseError, match=message):
        parse(right.replace(*change))


def test_every_field_survives():
    config = replace(
        CONFIG,
        name='a "name" \\ of µ\n',
        inputs=(TENSOR, replace(TENSOR, name="y", optional=True)),
        profiles=(0, 1),
        files_by_capability={"8.9": "a.plan"},
        parameters={"backend": "cuda:tf32"},
        decoupled=True,
    )
    message = parse(config_text(config))
    assert (message.name, message.backend, message.max_batch_size) == (config.name, "python", 0)
    assert [(each.name, each.optional) for each in message.input] == [("x", False), ("y", True)]
    assert [*message.output[0].dims] == [-1, 3]
    assert [*message.instance_group[0].profile] == ["0", "1"]
    assert message.instance_group[0].count == 1
    assert dict(message.cc_model_filenames) == {"8.9": "a.plan"}
    assert message.parameters["backend"].string_value == "cuda:tf32"
    assert message.model_transaction_policy.decoupled


def test_of_several_plans_the_newest_of_each_gpu_is_taken(sd35_bundle):
    bundle = with_plans(
        sd35_bundle,
        old=plan(version="10.9.0.34"),
        new=plan(version="10.13.0.1", profiles=(PROFILE, PROFILE)),
        other=plan(version="9.0", capabilities=("7.5",)),
        empty=plan(version="10.14", flags=("stripped",)),
        step=plan(version="10.14", graph="denoiser/step.onnx"),
        rtx=plan(version="10.14", engine="tensorrt-rtx"),
    )
    model = plan_model(bundle, "denoiser")
    assert model.files == {"model_7.5.plan": "other", "model_8.9.plan": "new"}
    message = parse(config_text(model.config))
    assert dict(message.cc_model_filenames) == {"7.5": "model_7.5.plan", "8.9": "model_8.9.plan"}
    assert message.default_model_filename in model.files
    assert message.backend == "tensorrt"
    kinds = message.instance_group[0].DESCRIPTOR.enum_types_by_name["Kind"].values_by_number
    assert kinds[message.instance_group[0].kind].name == "KIND_GPU"


def test_profiles_are_listed_if_a_plan_has_several(sd35_bundle):
    bundle = with_plans(sd35_bundle, one=plan(profiles=(PROFILE, PROFILE)))
    assert plan_model(bundle, "denoiser").config.profiles == (0, 1)
    bundle = with_plans(sd35_bundle, one=plan())
    assert plan_model(bundle, "denoiser").config.profiles == ()


@pytest.mark.parametrize(
    "words",
    [
        {"flags": ("stripped",)},
        {"flags": ("streaming",)},
        {"engine": "tensorrt-rtx"},
        {"graph": "denoiser/step.onnx"},
    ],
)
def test_a_plan_that_triton_cannot_run_is_none(sd35_bundle, words):
    with pytest.raises(BackendError, match=r"eri build .* --engine tensorrt --component denoiser"):
        plan_model(with_plans(sd35_bundle, one=plan(**words)), "denoiser")


def test_weights_that_the_graph_cannot_reach_are_refused(sd35_bundle):
    bundle = manifest.read(sd35_bundle)
    component = replace(bundle.components["denoiser"], weights="elsewhere/weights.safetensors")
    moved = replace(bundle, components={"denoiser": component})
    with pytest.raises(ManifestError, match="a file below denoiser"):
        onnx_model(moved, "denoiser")
