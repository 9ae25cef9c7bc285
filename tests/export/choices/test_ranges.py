"""The sizes a bundle serves: as its user says, both ends run, and static where all are fixed."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from eri_export import export
from eri_export.choices.ranges import Ranges, RequestedSizes, make_ranges
from eri_export.gate import cases, parity
from eri_runtime import load
from eri_runtime.bundle import manifest
from eri_runtime.bundle.spec import ShapeRange
from eri_runtime.errors import SizeError, UsageError

PROMPT = "a red heart on a blue ground"


def test_words_become_ranges():
    ranges = make_ranges(size="512x256:1024:1024x2048", batch="1:2:4", tokens="77")
    assert ranges == Ranges(
        width=RequestedSizes(min=512, opt=1024, max=1024),
        height=RequestedSizes(min=256, opt=1024, max=2048),
        batch=RequestedSizes(min=1, opt=2, max=4),
        tokens=RequestedSizes(opt=77),
    )
    assert make_ranges(static=True) == Ranges(static=True)


@pytest.mark.parametrize(
    "words",
    [
        {"size": "big"},
        {"size": "512x"},
        {"size": "512:1024"},
        {"size": "0"},
        {"size": "1024x512:512x512:2048x2048"},
        {"batch": "4:2:1"},
        {"batch": "-1"},
        {"batch": "1x1"},
        {"tokens": "77.5"},
        {"tokens": ""},
    ],
)
def test_other_words_are_refused(words):
    (name,) = words
    if not words[name]:
        assert make_ranges(**words).tokens is None
        return
    with pytest.raises(UsageError, match=name):
        make_ranges(**words)


def test_the_best_alone_stretches_what_is_usual():
    usual = ShapeRange(min=2, opt=8, max=16)
    assert RequestedSizes(opt=4).within(usual) == ShapeRange(min=2, opt=4, max=16)
    assert RequestedSizes(opt=32).within(usual) == ShapeRange(min=2, opt=32, max=32)
    assert RequestedSizes(opt=1).within(usual) == ShapeRange(min=1, opt=1, max=16)


@pytest.fixture(scope="module")
def narrow(sd35_checkpoint, tmp_path_factory, all_cases):
    ranges = make_ranges(size="64x96:96:96x128", batch="1:2:3", tokens="2:8:20")
    target = tmp_path_factory.mktemp("narrow") / "bundle"
    with all_cases():
        return manifest.read(export(sd35_checkpoint, target, ranges=ranges).root)


def test_every_component_serves_what_was_asked(narrow):
    ranges = {name: spec.ranges for name, spec in narrow.components.items()}
    assert ranges["denoiser"] == {
        "batch": ShapeRange(min=1, opt=4, max=6),
        "height": ShapeRange(min=24, opt=24, max=32),
        "width": ShapeRange(min=16, opt=24, max=24),
        "tokens": ShapeRange(min=18, opt=24, max=36),
    }
    assert ranges["vae_encoder"]["image_height"] == ShapeRange(min=96, opt=96, max=128)
    assert ranges["text_encoder"] == {"batch": ShapeRange(min=1, opt=2, max=3)}
    assert ranges["text_encoder_3"]["tokens"] == ShapeRange(min=2, opt=8, max=20)
    assert (narrow.defaults.height, narrow.defaults.width) == (96, 96)
    assert narrow.defaults.max_sequence_length == 8


def test_both_ends_of_them_were_run(narrow):
    metrics = json.loads(narrow.path("parity.json").read_text())["metrics"]
    run = [each["sizes"] for each in metrics if each["component"] == "denoiser"]
    assert {"batch": 1, "height": 24, "width": 16, "tokens": 18} in run
    assert {"batch": 6, "height": 32, "width": 24, "tokens": 36} in run


def test_the_runtime_keeps_to_them(narrow):
    with load(narrow.root) as pipe:
        words = {"num_inference_steps": 1, "seed": 0}
        assert pipe(PROMPT, **words).images[0].size == (96, 96)
        with pytest.raises(SizeError, match="64 to 96"):
            pipe(PROMPT, width=128, **words)
        with pytest.raises(SizeError, match="1 to 3"):
            pipe(PROMPT, num_images_per_prompt=4, **words)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ({"size": "100"}, "size: height"),
        ({"size": "4096"}, "table of positions"),
    ],
)
def test_sizes_the_network_cannot_have_are_refused(sd35_checkpoint, tmp_path, words, name):
    with pytest.raises(SizeError, match=name):
        export(sd35_checkpoint, tmp_path / "bundle", ranges=make_ranges(**words))
    assert not list(tmp_path.iterdir())


STATIC = {"sdxl": "64x32", "sd35": "64", "flux": "32x64"}


@pytest.fixture(scope="module", params=STATIC)
def static(request, tmp_path_factory):
    """A static bundle for two images, and the dynamic one of the same checkpoint."""
    family = request.param
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    ranges = make_ranges(size=STATIC[family], batch="2", static=True)
    root = export(checkpoint, tmp_path_factory.mktemp("static") / family, ranges=ranges).root
    return manifest.read(root), manifest.read(request.getfixturevalue(f"{family}_bundle"))


def test_a_static_graph_has_no_open_size(static):
    for spec in static[0].components.values():
        graph = onnx.load(static[0].path(spec.graph), load_external_data=False).graph
        for value in [*graph.input, *graph.output]:
            dims = value.type.tensor_type.shape.dim
            assert all(dim.dim_value > 0 for dim in dims), value.name
        assert all(each.min == each.opt == each.max for each in spec.ranges.values())


def test_a_static_bundle_was_compared_at_its_sizes(static):
    report = json.loads(static[0].path("parity.json").read_text())
    sizes = {
        name: {k: r.opt for k, r in c.ranges.items()} for name, c in static[0].components.items()
    }
    assert report["passed"]
    for each in report["metrics"]:
        assert each["sizes"] == sizes[each["component"]]
    assert {each["case"] for each in report["metrics"]} == {
        "drawn",
        "real",
        "step",
        "segments",
        "form",
    }


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_static_bundle_draws_what_the_dynamic_one_does(static, guidance):
    """One prompt and two of them, with one condition and with both."""
    width, height = static[0].defaults.width, static[0].defaults.height
    for prompts, count in ((PROMPT, 2), ([PROMPT, ""], 1)):
        latents = []
        for bundle in static:
            with load(bundle.root) as pipe:
                result = pipe(
                    prompts,
                    height=height,
                    width=width,
                    num_images_per_prompt=count,
                    num_inference_steps=2,
                    guidance_scale=guidance,
                    seed=0,
                    output_type="np",
                )
                latents.append((result.latents, result.images))
        (ours, image), (theirs, expected) = latents
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
        assert np.abs(image - expected).max() <= 1 / 255


def test_a_static_bundle_refuses_other_sizes(static):
    with load(static[0].root) as pipe:
        with pytest.raises(SizeError, match="2 to 2"):
            pipe(PROMPT, num_inference_steps=1)
        with pytest.raises(SizeError, match="as it was exported"):
            pipe(PROMPT, num_images_per_prompt=2, width=128, height=128, num_inference_steps=1)


def test_a_static_graph_too_costly_to_run_is_compared_at_small_sizes(
    flux_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setitem(cases.COSTLY, "full", 1e6)
    ranges = make_ranges(size=STATIC["flux"], batch="2", static=True)  # traced above
    bundle = manifest.read(export(flux_checkpoint, tmp_path / "bundle", ranges=ranges).root)
    metrics = json.loads(bundle.path("parity.json").read_text())["metrics"]
    assert {each["network"] for each in metrics} == {parity.SMALL}
    assert {each["sizes"]["batch"] for each in metrics if each["case"] == "drawn"} == {1, 3}
    assert "real" in {each["case"] for each in metrics if each["component"] == "denoiser"}
