"""OpenVINO beside ONNX Runtime: every component, whole pipelines, shapes that change."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eri_runtime as eri
from eri_export import export
from eri_export.gate import other_engines
from eri_runtime.commands.main import main
from eri_runtime.errors import BackendError, SizeError
from eri_runtime.executors.base import Settings
from eri_runtime.executors.openvino import backend as module
from eri_runtime.executors.openvino.backend import OPENVINO, OPENVINO_BF16
from eri_runtime.executors.openvino.executor import OpenVinoExecutor
from eri_runtime.executors.ort.backend import CPU
from tests.support.components import STATIC

FAMILIES = ["sdxl", "sd35", "flux"]
TOLERANCE = 1e-5  # float32 in another order of summation
WORDS = {"height": 32, "width": 48, "num_inference_steps": 4, "seed": 3, "output_type": "latent"}


@pytest.fixture(params=FAMILIES)
def bundle(request):
    """Each family's."""
    return eri.read_bundle(request.getfixturevalue(f"{request.param}_bundle"))


def drawn(spec, batch=2, **sizes):
    """Inputs of a component: `sizes` by dimension, or those it is tuned for, at most 12."""
    rng = np.random.default_rng(batch)
    usual = {name: min(each.opt, 12) for name, each in spec.ranges.items()}
    sizes = {**usual, "batch": batch, **sizes}
    inputs = {}
    for tensor in spec.inputs:
        shape = tuple(sizes.get(each, each) for each in tensor.shape)
        if tensor.dtype == "int64":
            inputs[tensor.name] = rng.integers(0, 100, shape)
        else:
            inputs[tensor.name] = rng.standard_normal(shape, np.float32)
    return inputs


def opened(bundle, name, backend=OPENVINO):
    """A component of a bundle."""
    spec = bundle.components[name]
    return backend.executor(bundle.path(spec.graph), spec, Settings(threads=1))


def error(ours, expected):
    """The worst relative error over all outputs."""
    return max(np.abs(ours[k] - v).max() / np.abs(v).max() for k, v in expected.items())


def smallest_first(spec):
    """Sizes to ask for in turn: back and forth, odd, and a batch of one to three."""
    spatial = [name for name in spec.ranges if name in ("height", "width")]
    odd = dict(zip(spatial, (8, 10), strict=False))
    return [{"batch": 2}, {"batch": 1}, {"batch": 2}, {"batch": 3, **odd}, {"batch": 1, **odd}]


def test_every_component_is_onnx_runtimes_at_every_shape(bundle):
    for name, spec in bundle.components.items():
        with opened(bundle, name) as ours, opened(bundle, name, CPU) as reference:
            for sizes in smallest_first(spec):
                inputs = drawn(spec, **sizes)
                found = ours.run(inputs)
                assert {k: v.dtype for k, v in found.items()} == {
                    output.name: np.float32 for output in spec.outputs
                }
                assert error(found, reference.run(inputs)) < TOLERANCE, (name, sizes)


def test_pipelines_end_where_onnx_runtimes_do(bundle):
    for words in ({}, {"height": 48, "num_images_per_prompt": 3, "num_inference_steps": 2}):
        latents = []
        for backend in ("openvino", "cpu"):
            with eri.load(bundle.root, backend) as pipe:
                latents.append(pipe("a red heart", **{**WORDS, **words}).latents)
        ours, theirs = latents
        assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-4


def test_images_equal_onnx_runtimes(sd35_bundle):
    images = []
    for backend in ("openvino", "cpu"):
        with eri.load(sd35_bundle, backend) as pipe:
            images.append(pipe("a red heart", **{**WORDS, "output_type": "np"}).images)
    assert np.abs(images[0] - images[1]).max() < 1 / 255


@pytest.fixture(scope="module")
def sd35(sd35_bundle):
    """The family with a T5 and dual attention."""
    return eri.read_bundle(sd35_bundle)


def test_an_output_that_is_kept_does_not_change(sd35):
    inputs = drawn(sd35.components["denoiser"])
    with opened(sd35, "denoiser") as executor:
        kept = executor.run(inputs)["output"]
        copy = kept.copy()
        other = executor.run({**inputs, "sample": inputs["sample"] + 1})["output"]
        assert not np.array_equal(other, copy)
    np.testing.assert_array_equal(kept, copy)  # also when the engine is closed


def test_an_input_is_not_written_to_and_may_be_a_view(sd35):
    inputs = drawn(sd35.components["denoiser"])
    with opened(sd35, "denoiser") as executor:
        expected = executor.run(inputs)["output"]
        view = {**inputs, "sample": np.asfortranarray(inputs["sample"])}
        view["sample"].flags.writeable = False
        np.testing.assert_array_equal(executor.run(view)["output"], expected)


@pytest.mark.parametrize("order", ["C", "F"])
def test_what_is_written_into_an_input_counts_in_the_next_call(sd35, order):
    inputs = drawn(sd35.components["denoiser"])
    sample = np.array(inputs["sample"], order=order)
    with opened(sd35, "denoiser") as executor:
        first = executor.run({**inputs, "sample": sample})["output"]
        sample += 1
        second = executor.run({**inputs, "sample": sample})["output"]
        fresh = executor.run({**inputs, "sample": inputs["sample"] + 1})["output"]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(second, fresh)


def test_a_view_of_fixed_memory_counts_too(sd35):
    inputs = drawn(sd35.components["denoiser"])
    view = inputs["sample"].view()
    view.flags.writeable = False
    with opened(sd35, "denoiser") as executor:
        first = executor.run({**inputs, "sample": view})["output"]
        inputs["sample"] += 1
        second = executor.run({**inputs, "sample": view})["output"]
        fresh = executor.run({**inputs, "sample": inputs["sample"].copy()})["output"]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(second, fresh)


def test_it_is_compiled_for_the_first_shapes_and_once_more_for_any(sd35, monkeypatch):
    compiled = []
    spec = sd35.components["vae_decoder"]
    with opened(sd35, "vae_decoder") as executor:
        core = executor._core

        class Counting:
            def compile_model(self, model, *rest):
                compiled.append(model.is_dynamic())
                return core.compile_model(model, *rest)

        executor._core = Counting()
        for sizes in smallest_first(spec):
            executor.run(drawn(spec, **sizes))
    assert compiled == [False, True]


def test_two_pipelines_at_once(sd35_bundle):
    with eri.load(sd35_bundle, "openvino") as one, eri.load(sd35_bundle, "openvino") as other:
        requests = [pipe.request("a red heart", **WORDS) for pipe in (one, other)]
        steps = zip(one.denoise(requests[0]), other.denoise(requests[1]), strict=True)
        for mine, yours in steps:
            np.testing.assert_array_equal(mine.x, yours.x)


def test_two_threads_may_share_a_component(sd35):
    spec = sd35.components["text_encoder_3"]
    asked = [drawn(spec, batch=2, tokens=tokens) for tokens in (12, 16)] * 6
    with opened(sd35, "text_encoder_3") as executor, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(executor.run, asked))
        for inputs, outputs in zip(asked, found, strict=True):
            assert error(outputs, executor.run(inputs)) < TOLERANCE


def test_a_closed_pipeline_opens_again(sd35_bundle):
    pipe = eri.load(sd35_bundle, "openvino", threads=1)
    with pipe:
        first = pipe("a red heart", **WORDS).latents
    with pipe:
        np.testing.assert_array_equal(pipe("a red heart", **WORDS).latents, first)


def test_a_wrong_input_is_refused_before_the_engine_sees_it(sd35):
    inputs = drawn(sd35.components["denoiser"])
    with opened(sd35, "denoiser") as executor:
        for sample in (inputs["sample"].astype(np.float64), inputs["sample"][:, :3]):
            with pytest.raises(SizeError, match="denoiser: sample"):
                executor.run({**inputs, "sample": sample})


def test_a_graph_that_is_none_is_refused(sd35, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"model\.onnx: got .*expected a graph that OpenVINO 20"):
        OpenVinoExecutor(path, sd35.components["denoiser"])


def test_threads_reach_the_engine(sd35):
    spec = sd35.components["text_encoder"]
    with opened(sd35, "text_encoder") as executor:
        executor.run(drawn(spec))
        compiled = executor._request._request.get_compiled_model()
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
        assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_importing_it_reports_to_nobody(tmp_path):
    """Its own import sends an event, and leaves an identifier in the home folder."""
    code = "from eri_runtime.executors.openvino.library import import_openvino as f; f()\n"
    code += (
        "import sys; assert sys.modules['openvino']; assert not sys.modules['openvino_telemetry']"
    )
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(Path.cwd())}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []


# bfloat16


needs_bfloat16 = pytest.mark.skipif(
    "BF16" not in module.cpu_capabilities(), reason="this processor has no bfloat16"
)


@needs_bfloat16
def test_bfloat16_rounds_the_denoiser_and_the_vae(bundle):
    """8 bits are 4e-3 a rounding; a random network of a few layers makes ten times that of it."""
    for name in ("denoiser", "vae_decoder", "vae_encoder"):
        inputs = drawn(bundle.components[name])
        with opened(bundle, name, OPENVINO_BF16) as ours, opened(bundle, name, CPU) as reference:
            assert 1e-4 < error(ours.run(inputs), reference.run(inputs)) < 0.1, name


@needs_bfloat16
@pytest.mark.parametrize("clock", [999.0, 700.0, 77.7])
def test_bfloat16_does_not_round_the_clock(bundle, clock):
    """Rounded to 8 bits it is wrong by radians, and a network of noise is another one then."""
    inputs = drawn(bundle.components["denoiser"], batch=1)
    inputs["timestep"][:] = clock
    found = {}
    for backend in (OPENVINO_BF16, OPENVINO):
        with opened(bundle, "denoiser", backend) as executor:
            found[backend.compute] = executor.run(inputs)
    assert found["bf16"].keys() == {"output"}
    assert error(found["bf16"], found["f32"]) < 0.03


@needs_bfloat16
def test_bfloat16_leaves_text_encoders_alone(bundle):
    for name, spec in bundle.components.items():
        if name.startswith("text_encoder"):
            inputs = drawn(spec)
            with opened(bundle, name, OPENVINO_BF16) as ours, opened(bundle, name) as exact:
                assert error(ours.run(inputs), exact.run(inputs)) < TOLERANCE, name


@needs_bfloat16
def test_a_picture_in_bfloat16_is_the_one_in_float32_and_no_other(sd35_bundle, tmp_path):
    """Against a network of noise, which forgives least, a sixth of what another seed changes."""
    pictures = []
    for backend, seed in (("openvino", "3"), ("openvino:bf16", "3"), ("openvino", "4")):
        target = tmp_path / f"{len(pictures)}.png"
        words = ["generate", str(sd35_bundle), "a red heart", "--steps", "4", "--size", "48x32"]
        words += ["--seed", seed, "--guidance", "1", "--backend", backend, "-o", str(target)]
        assert main(words) == 0
        pictures.append(np.asarray(Image.open(target), np.float64))
    exact, rounded, other = pictures
    assert 0 < np.abs(rounded - exact).mean() < np.abs(other - exact).mean() / 6


def test_bfloat16_is_refused_by_a_processor_without_it(sd35, monkeypatch):
    monkeypatch.setattr(module, "cpu_capabilities", lambda: ["FP32"])
    spec = sd35.components["denoiser"]
    assert OPENVINO_BF16.refusal(spec) == "this processor has no bfloat16: use --backend openvino"
    assert OPENVINO.refusal(spec) is None
    with pytest.raises(BackendError, match="no bfloat16"):
        opened(sd35, "denoiser", OPENVINO_BF16)


# the export's own comparison


@pytest.fixture(scope="module")
def sixteen(flux_checkpoint, tmp_path_factory):
    """A bfloat16 bundle from where OpenVINO is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(other_engines, "OTHERS", {"openvino": OPENVINO})
        target = tmp_path_factory.mktemp("bf16") / "flux"
        return export(flux_checkpoint, target, precision="bf16", ranges=STATIC)


def test_an_export_writes_down_what_openvino_is_off_by(sixteen):
    read = eri.read_bundle(sixteen.root)
    for name, spec in read.components.items():
        assert spec.precision == ("fp32" if name == "text_encoder_2" else "bf16")
        assert (spec.precision == "fp32") is (spec.compared["openvino"] < 1e-4), name
        assert spec.compared["openvino"] < 5e-2, name


def test_auto_runs_a_bfloat16_bundle_on_openvino(sixteen, flux_bundle):
    latents = []
    for root in (sixteen.root, flux_bundle):
        with eri.load(root) as pipe:
            latents.append(pipe("a red heart", **WORDS).latents)
    ours, exact = latents
    assert 1e-4 < np.abs(ours - exact).max() / np.abs(exact).max() < 0.1


class Off(module.OpenVinoBackend):
    """An engine that is wrong by `by`."""

    def __init__(self, by):
        super().__init__()
        object.__setattr__(self, "by", by)

    def executor(self, graph, spec, settings, *overrides):
        inner = super().executor(graph, spec, settings, *overrides)
        run, by = inner.run, self.by
        inner.run = lambda inputs: {name: value + by for name, value in run(inputs).items()}
        return inner


@pytest.mark.parametrize("by", [0.0, 1e-2, np.nan, np.inf])
def test_an_engine_that_is_off_is_left_out(by, sd35, monkeypatch, caplog):
    monkeypatch.setattr(other_engines, "OTHERS", {"openvino": Off(by)})
    spec = sd35.components["vae_decoder"]
    inputs = drawn(spec)
    with opened(sd35, "vae_decoder", CPU) as reference:
        expected = reference.run(inputs)
    case = other_engines.Case("drawn", {}, inputs)
    found = other_engines.engine_errors(sd35.path(spec.graph), spec, [case], [expected])
    assert list(found) == ([] if by else ["openvino"])
    said = [message.partition(" is off by ") for message in caplog.messages]
    assert [(who, text.endswith("left out")) for who, _, text in said] == (
        [("vae_decoder: openvino", True)] if by else []
    )


def test_an_engine_that_fails_stops_no_export(sd35, tmp_path, monkeypatch):
    monkeypatch.setattr(other_engines, "OTHERS", {"openvino": OPENVINO})
    spec, path = sd35.components["vae_decoder"], tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    assert other_engines.engine_errors(path, spec, [], []) == {}
