"""A plan is chosen for the machine, refused with what to run, and hashed before it is used."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eri_runtime.bundle import file_record, manifest
from eri_runtime.bundle.integrity import verify_on_load
from eri_runtime.bundle.spec import (
    Bundle,
    ComponentSpec,
    Defaults,
    LatentSpec,
    PlanSpec,
    ScheduleSpec,
    ShapeRange,
    TensorSpec,
)
from eri_runtime.errors import BackendError, IntegrityError, ManifestError, SizeError
from eri_runtime.executors import nvidia_driver
from eri_runtime.executors.tensorrt.plans import Machine, choose_plan, choose_profile, read_plan

ADA = Machine(engine="tensorrt-rtx", version="1.7.1.116", capability="8.9")
GRAPH, STEP = "denoiser/model.onnx", "denoiser/step.onnx"
PLAN = PlanSpec(
    component="denoiser",
    graph=GRAPH,
    engine="tensorrt-rtx",
    version="1.7.1.116",
    capabilities=("8.6", "8.9"),
    profiles=(
        {"batch": ShapeRange(min=2, opt=2, max=2)},
        {"batch": ShapeRange(min=1, opt=2, max=8)},
    ),
    flags=(),
    level=3,
    workspace=None,
    attention=2,
    fused=1,
)

SIDE = ShapeRange(min=2, opt=8, max=16)
RANGES = {
    "batch": ShapeRange(min=1, opt=2, max=8),
    "height": SIDE,
    "width": SIDE,
    "tokens": ShapeRange(min=1, opt=77, max=77),
}
INPUTS = {
    "sample": ("batch", 16, "height", "width"),
    "timestep": ("batch",),
    "encoder_hidden_states": ("batch", "tokens", 4),
    "pooled_projections": ("batch", 4),
}


def tensor(name, *shape):
    return TensorSpec(name=name, dtype="float32", shape=shape)


@pytest.fixture
def bundle(tmp_path):
    """A denoiser, its step graph and one plan, of files that are not what they say."""
    for name in (GRAPH, STEP, "denoiser/weights.safetensors", "plans/a.plan"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    names = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    denoiser = ComponentSpec(
        graph=GRAPH,
        step=STEP,
        weights="denoiser/weights.safetensors",
        precision="fp16",
        inputs=tuple(tensor(name, *shape) for name, shape in INPUTS.items()),
        outputs=(tensor("output", *INPUTS["sample"]),),
        ranges=RANGES,
        parameters=7,
        parity=1e-6,
    )
    bundle = Bundle(
        root=tmp_path,
        family="sd35",
        components={"denoiser": denoiser},
        tokenizers={},
        schedule=ScheduleSpec(kind="flow", prediction="flow"),
        latents=LatentSpec(channels=16, factor=8, scale=1.0, shift=0.0, patch=2),
        defaults=Defaults(
            sampler="flow_euler",
            num_inference_steps=28,
            guidance_scale=7.0,
            height=64,
            width=64,
            max_sequence_length=77,
        ),
        files={name: file_record(tmp_path / name) for name in names},
        plans={"plans/a.plan": PLAN},
    )
    (tmp_path / "manifest.json").write_text(manifest.dump(bundle))
    return bundle


def with_plans(bundle, **plans):
    """The same bundle with plans of these changes to `PLAN`."""
    changed = {f"plans/{name}.plan": replace(PLAN, **change) for name, change in plans.items()}
    return replace(bundle, plans=changed)


def test_the_manifest_keeps_plans_as_they_are(bundle):
    assert manifest.read(bundle.root) == bundle


def test_a_plan_that_is_no_file_or_of_no_component_is_refused(bundle):
    for plans in (
        {"plans/b.plan": PLAN},
        {"plans/a.plan": replace(PLAN, component="unet")},
    ):
        text = manifest.dump(replace(bundle, plans=plans))
        (bundle.root / "manifest.json").write_text(text)
        with pytest.raises(ManifestError, match="plans"):
            manifest.read(bundle.root)


@pytest.mark.parametrize("capability", ["8.6", "8.9"])
def test_a_plan_for_this_gpu_is_chosen(bundle, capability):
    assert choose_plan(bundle, GRAPH, replace(ADA, capability=capability)) == "plans/a.plan"


@pytest.mark.parametrize(
    ("graph", "changes", "reason"),
    [
        (GRAPH, {"capability": "12.0"}, "got a plan for compute capability 8.6, 8.9"),
        (GRAPH, {"version": "1.8.0.1"}, "got a plan for tensorrt-rtx 1.7.1.116"),
        (GRAPH, {"version": "1.7.1.117"}, "got a plan for tensorrt-rtx 1.7.1.116"),
        (GRAPH, {"engine": "tensorrt"}, "got a plan for tensorrt-rtx,"),
        (STEP, {}, "got no plan"),
    ],
)
def test_a_plan_for_another_machine_is_refused_with_what_to_run(bundle, graph, changes, reason):
    machine = replace(ADA, **changes)
    with pytest.raises(BackendError) as caught:
        choose_plan(bundle, graph, machine)
    text = str(caught.value)
    assert reason in text
    assert (
        f"run `eri build {bundle.root} --engine {machine.engine} "
        f"--compute-capability {machine.capability} --component denoiser`" in text
    )
    assert "\n" not in text


@pytest.mark.parametrize(
    ("flags", "changes", "fits"),
    [
        (("version-compatible",), {"version": "1.8.0.1"}, True),
        (("version-compatible",), {"version": "1.10.0.1"}, True),
        (("version-compatible",), {"version": "1.7.0.9"}, False),
        (("version-compatible",), {"version": "2.0.0.1"}, False),
        (("version-compatible",), {"capability": "9.0"}, False),
        (("hardware-compatible",), {"capability": "12.0"}, True),
        (("hardware-compatible",), {"capability": "7.5"}, False),
        (("hardware-compatible",), {"version": "1.8.0.1"}, False),
    ],
)
def test_what_compatible_plans_are_good_for(bundle, flags, changes, fits):
    bundle, machine = with_plans(bundle, a={"flags": flags}), replace(ADA, **changes)
    if fits:
        assert choose_plan(bundle, GRAPH, machine) == "plans/a.plan"
        return
    with pytest.raises(BackendError, match="eri build"):
        choose_plan(bundle, GRAPH, machine)


def test_a_plan_with_its_weights_comes_before_one_without(bundle):
    bundle = with_plans(bundle, a={"flags": ("stripped",)}, b={"flags": ("refit",)})
    assert choose_plan(bundle, GRAPH, ADA) == "plans/b.plan"
    assert choose_plan(with_plans(bundle, a={"flags": ("stripped",)}), GRAPH, ADA) == "plans/a.plan"


def test_a_plan_is_hashed_as_it_is_read(bundle):
    path = bundle.path("plans/a.plan")
    assert read_plan(bundle, "plans/a.plan") == b"plans/a.plan"
    path.write_bytes(b"plans/b.plan")
    verify_on_load(bundle)  # the size is right, and only what is used is hashed
    with pytest.raises(IntegrityError, match=r"sha256.*`eri build"):
        read_plan(bundle, "plans/a.plan")
    path.unlink()
    with pytest.raises(IntegrityError, match="expected the plan; build it again"):
        read_plan(bundle, "plans/a.plan")


@pytest.mark.parametrize(("batch", "index"), [(2, 0), (1, 1), (8, 1)])
def test_the_first_profile_that_holds_the_sizes(batch, index):
    assert choose_profile(PLAN, {"batch": batch, "height": 64}) == index


@pytest.mark.parametrize("sizes", [{"batch": 9}, {"images": 2}])
def test_sizes_that_no_profile_holds(sizes):
    with pytest.raises(SizeError, match="batch 2 to 2 or batch 1 to 8"):
        choose_profile(PLAN, sizes)


def test_a_version_that_is_none_is_another(bundle):
    bundle = with_plans(bundle, a={"version": "x", "flags": ("version-compatible",)})
    with pytest.raises(BackendError, match="a plan for tensorrt-rtx x"):
        choose_plan(bundle, GRAPH, ADA)


class Driver:
    """A libcuda of an RTX 4090, or one that fails in the call named."""

    def __init__(self, failing=None):
        self.failing = failing

    def __getattr__(self, name):
        def call(found=None, attribute=None, _device=None):
            if name == "cuDeviceGetAttribute":
                found._obj.value = {75: 8, 76: 9}[attribute]
            return 999 if name == self.failing else 0

        return call


def test_the_driver_is_asked_for_the_compute_capability(monkeypatch):
    monkeypatch.setattr(nvidia_driver.ctypes, "CDLL", lambda _: Driver())
    assert nvidia_driver.compute_capability() == "8.9"


@pytest.mark.parametrize("failing", ["cuInit", "cuDeviceGet", "cuDeviceGetAttribute"])
def test_a_driver_that_fails_is_no_gpu(monkeypatch, failing):
    monkeypatch.setattr(nvidia_driver.ctypes, "CDLL", lambda _: Driver(failing))
    assert nvidia_driver.compute_capability() is None


def test_no_driver_is_no_gpu(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(nvidia_driver.ctypes, "CDLL", missing)
    assert nvidia_driver.compute_capability() is None
