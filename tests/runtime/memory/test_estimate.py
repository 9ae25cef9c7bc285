"""What a request is estimated to take: stage by stage by hand, and what holds of all of them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eri_runtime.bundle import manifest
from eri_runtime.bundle.spec import ComponentSpec, FileRecord, SegmentSpec, ShapeRange, TensorSpec
from eri_runtime.errors import SizeError
from eri_runtime.executors.base import Settings
from eri_runtime.latents.vae import VaeMode
from eri_runtime.memory.estimate import (
    CPU,
    CPU_MAPPED,
    GPU,
    OPENVINO,
    activations,
    estimate_peak,
    resident_bytes,
    stage_need,
)
from eri_runtime.memory.modes import Mode
from eri_runtime.memory.stages import stages

USUAL, LOW = Settings(), Settings(low_memory=True)
WHOLE = Mode()
OFFLOADED = Mode(offloaded=True)


def spec(*activations, precision="fp32"):
    size = ShapeRange(min=1, opt=2, max=64)
    return ComponentSpec(
        graph="g",
        weights="w",
        precision=precision,
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", "height")),),
        outputs=(),
        ranges={"batch": size, "height": size},
        parameters=1,
        parity=0.0,
        activations=activations,
    )


@pytest.fixture
def bundle(sdxl_bundle):
    """Tiny, but with the weights that its manifest says are 1, 2, 3, ... GB."""
    found = manifest.read(sdxl_bundle)
    large = {
        component.weights: FileRecord(size=i * 10**9, sha256="")
        for i, component in enumerate(found.components.values(), 1)
    }
    return dataclasses.replace(found, files={**found.files, **large})


def test_a_run_takes_the_largest_of_its_polynomials():
    found = spec({"batch*height": 8.0, "1": 100.0}, {"batch*height*height": 1.0})
    assert activations(found, {"batch": 2, "height": 3}) == 2 * 3 * 8 + 100
    assert activations(found, {"batch": 2, "height": 50}) == 2 * 50 * 50


def test_engines_differ_in_scores_and_copies_and_widths():
    given = {"batch": 2.0, "batch*scores": 100.0, "batch*copies": 1000.0}
    at = {"batch": 3, "height": 1}
    assert activations(spec(given), at, CPU) == 3306
    assert activations(spec(given), at, OPENVINO) == 6
    assert activations(spec(given, precision="fp16"), at, CPU) == 3306
    assert activations(spec(given, precision="fp16"), at, GPU) == 3


def test_a_bundle_that_does_not_say_is_not_guessed_at(bundle):
    silent = {
        name: dataclasses.replace(each, activations=()) for name, each in bundle.components.items()
    }
    old = dataclasses.replace(bundle, components=silent)
    found = estimate_peak(old, "cpu", USUAL, WHOLE, 32, 32, 1)
    assert (found.peak, found.at) == (None, None)
    assert stage_need(old, "cpu", USUAL, "denoiser", {}) is None


def test_weights_are_prepacked_mapped_or_beside_their_file(bundle):
    size = bundle.files[bundle.components["denoiser"].weights].size
    for backend, settings, costs in (
        ("cpu", USUAL, CPU),
        ("cpu", LOW, CPU_MAPPED),
        ("openvino", USUAL, OPENVINO),
    ):
        expected = (costs.private + costs.pages) * size + costs.each
        assert resident_bytes(bundle, "denoiser", backend, settings) == pytest.approx(expected)
    more = resident_bytes(bundle, "denoiser", "cpu", USUAL, overrides_bytes=7)
    assert more - resident_bytes(bundle, "denoiser", "cpu", USUAL) == 7


def test_half_precision_is_held_in_full_on_a_cpu_and_in_half_on_a_gpu(bundle):
    half = dataclasses.replace(bundle.components["denoiser"], precision="fp16")
    halved = dataclasses.replace(bundle, components={**bundle.components, "denoiser": half})
    size = bundle.files[half.weights].size
    assert resident_bytes(halved, "denoiser", "cpu", USUAL) == pytest.approx(
        2 * CPU.private * size, rel=0.01
    )
    assert resident_bytes(halved, "denoiser", "cuda", USUAL) == size


def test_a_streamed_denoiser_holds_its_largest_segment(sdxl_bundle):
    found = manifest.read(sdxl_bundle)
    denoiser = found.components["denoiser"]
    parts = tuple(
        SegmentSpec(graph="s", inputs=(), outputs=(), weights=weights)
        for weights in (("conv_in.weight",), ("conv_in.weight", "conv_in.bias"))
    )
    segmented = dataclasses.replace(denoiser, segments=parts)
    bundle = dataclasses.replace(found, components={**found.components, "denoiser": segmented})
    largest = 4 * (32 * 4 * 3 * 3 + 32)  # the convolution's weights and biases, float32
    kept = resident_bytes(bundle, "denoiser", "cpu", Settings(streamed=True))
    assert kept == pytest.approx((CPU_MAPPED.private + 1) * largest + CPU_MAPPED.each, abs=1)
    whole = resident_bytes(bundle, "vae_decoder", "cpu", Settings(streamed=True))
    assert whole == resident_bytes(bundle, "vae_decoder", "cpu", USUAL)


def test_what_is_open_is_held_to_the_end_unless_one_is_open_at_a_time(bundle):
    plain = estimate_peak(bundle, "cpu", USUAL, WHOLE, 32, 32, 1)
    totals = [need.total for need in plain.needs]
    assert plain.peak == sum(totals) + CPU.engine
    assert plain.at == plain.needs[-1].component == "vae_decoder"
    offloaded = estimate_peak(bundle, "cpu", USUAL, OFFLOADED, 32, 32, 1)
    assert offloaded.peak == max(totals) + CPU.engine
    assert offloaded.at == max(offloaded.needs, key=lambda need: need.total).component


def test_stages_are_those_of_the_request(bundle):
    made = stages(bundle, WHOLE, 40, 32, 3, edited=True)
    assert [each.component for each in made] == [
        "text_encoder",
        "text_encoder_2",
        "vae_encoder",
        "denoiser",
        "vae_decoder",
    ]
    sizes = {each.component: dict(each.sizes) for each in made}
    assert sizes["denoiser"] == {"batch": 6, "height": 20, "width": 16, "tokens": 16}
    assert sizes["vae_decoder"] == {"batch": 3, "height": 20, "width": 16}
    assert sizes["vae_encoder"] == {"batch": 3, "image_height": 40, "image_width": 32}


@pytest.mark.parametrize("family", ["sd35", "flux"])
def test_every_dimension_of_every_family_has_a_size(request, family):
    bundle = manifest.read(request.getfixturevalue(f"{family}_bundle"))
    for stage in stages(bundle, WHOLE, 32, 48, 2, tokens=5, edited=True):
        assert stage.sizes.keys() == bundle.components[stage.component].ranges.keys()
        for name, size in stage.sizes.items():
            assert size in bundle.components[stage.component].ranges[name]
    denoiser = next(s for s in stages(bundle, WHOLE, 32, 48, 2, tokens=5) if "tokens" in s.sizes)
    assert denoiser.sizes["tokens"] == 5  # T5's own
    last = next(s for s in stages(bundle, WHOLE, 32, 48, 2, tokens=5) if s.component == "denoiser")
    assert last.sizes["tokens"] == (16 + 5 if family == "sd35" else 5)


def test_modes_make_batches_and_pictures_smaller(bundle):
    thrifty = Mode(rows=2, vae=VaeMode(images=1, tile=16))
    sizes = {each.component: each for each in stages(bundle, thrifty, 48, 64, 4)}
    assert sizes["denoiser"].sizes["batch"] == 2
    assert sizes["vae_decoder"].sizes == {"batch": 1, "height": 8, "width": 8}
    sliced = {
        each.component: each for each in stages(bundle, Mode(vae=VaeMode(images=1)), 48, 64, 4)
    }
    assert sliced["vae_decoder"].sizes == {"batch": 1, "height": 24, "width": 32}


def test_a_picture_that_one_tile_holds_is_not_cut(bundle):
    whole, tiled = (
        stages(bundle, Mode(vae=vae), 32, 32, 3)[-1] for vae in (VaeMode(), VaeMode(tile=64))
    )
    assert whole == tiled


def test_a_component_that_is_open_needs_its_run_alone(bundle):
    sizes = {"batch": 1, "height": 16, "width": 16}
    open_, closed = (
        stage_need(bundle, "cpu", USUAL, "vae_decoder", sizes, is_open=each)
        for each in (True, False)
    )
    run = activations(bundle.components["vae_decoder"], sizes, CPU)
    assert open_ == int(CPU.run * run)
    assert closed - open_ == resident_bytes(bundle, "vae_decoder", "cpu", USUAL) - CPU.each
    mapped = stage_need(bundle, "cpu", LOW, "vae_decoder", sizes)
    assert mapped < closed  # pages of its file are found where there is room


def test_gpus_were_not_measured(bundle):
    for backend, measured in {
        "cpu": True,
        "openvino": True,
        "cuda": False,
        "tensorrt": False,
    }.items():
        assert estimate_peak(bundle, backend, USUAL, WHOLE, 32, 32, 1).measured is measured


def test_a_size_that_latents_cannot_have_is_refused(bundle):
    with pytest.raises(SizeError, match="height"):
        estimate_peak(bundle, "cpu", USUAL, WHOLE, 33, 32, 1)


SIDES = st.sampled_from(range(8, 65, 4))
CASES = st.tuples(st.sampled_from(["cpu", "openvino", "cuda"]), SIDES, SIDES, st.integers(1, 4))
MODES = st.builds(
    Mode,
    rows=st.none() | st.integers(1, 4),
    vae=st.builds(VaeMode, images=st.none() | st.just(1), tile=st.none() | st.just(16)),
    offloaded=st.booleans(),
    low_memory=st.booleans(),
)


@given(CASES, MODES)
def test_larger_requests_take_no_less_and_thriftier_modes_no_more(sdxl_bundle, case, mode):
    bundle = manifest.read(sdxl_bundle)
    backend, height, width, images = case

    def taken(mode, height, width, images):
        return estimate_peak(bundle, backend, USUAL, mode, height, width, images).peak

    own = taken(mode, height, width, images)
    sides = [min(64, side + 8) for side in (height, width)]
    if mode.vae.tile is None:  # the first size to be cut is the first in tiles, which are smaller
        assert taken(mode, *sides, images) >= own
        assert taken(mode, height, width, images + 1) >= own
    assert taken(mode.with_changes(offloaded=True), height, width, images) <= own
    assert taken(mode.with_changes(rows=1), height, width, images) <= own


CHILD = """
import json, sys
import eri_runtime as eri
import onnxruntime, PIL.Image, tokenizers

def field(name):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(each.split()[1]) for each in lines if each.startswith(name))

before = field("VmRSS:")
with eri.load(sys.argv[1], "cpu") as pipe:
    pipe("a red heart", num_inference_steps=2, seed=0, height=64, width=64)
print(json.dumps(field("VmHWM:") - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
def test_an_estimate_is_of_the_order_of_what_a_process_takes(sdxl_bundle):
    """Within a factor of three either way: at this size it is the engine's own code and threads."""
    command = [sys.executable, "-c", CHILD, str(sdxl_bundle)]
    taken = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    estimated = estimate_peak(manifest.read(sdxl_bundle), "cpu", USUAL, WHOLE, 64, 64, 1).peak
    assert taken / 3 < estimated < taken * 3
