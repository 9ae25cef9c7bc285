"""Weights of an open pipeline are replaced: by whom, in what, all or nothing, there and back."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import eri_runtime as eri
from eri_export import export
from eri_runtime.bundle import file_record
from eri_runtime.bundle.safetensors_file import read_header, read_tensors
from eri_runtime.errors import (
    BackendError,
    NonFiniteError,
    NotACheckpointError,
    SizeError,
    UnknownNameError,
    UsageError,
)
from eri_runtime.executors import choice
from eri_runtime.executors.base import Executor
from eri_runtime.weights.live_weights import DENOISER, LiveWeights
from tests.support.components import STATIC, only

FAMILIES = ["sdxl", "sd35", "flux"]
WORDS = {"height": 32, "width": 32, "num_inference_steps": 3, "seed": 4, "output_type": "np"}
WAYS = [
    *((family, "cpu", "step") for family in FAMILIES),
    ("sd35", "cpu", "numpy"),
    ("sd35", "openvino", "numpy"),
]
PARTS = 3  # of a component's weights, which are changed together


@pytest.fixture(params=FAMILIES)
def bundle(request):
    """Each family's."""
    return eri.read_bundle(request.getfixturevalue(f"{request.param}_bundle"))


@pytest.fixture(scope="module")
def sd35(sd35_bundle):
    return eri.read_bundle(sd35_bundle)


@pytest.fixture(scope="module")
def weights(sd35):
    """The denoiser's, as the file has them."""
    return read_tensors(sd35.path(sd35.components[DENOISER].weights))


def drawn(spec):
    """Inputs of a component."""
    rng = np.random.default_rng(0)
    sizes = {name: max(each.min, min(each.opt, 8)) for name, each in spec.ranges.items()}
    sizes["batch"] = spec.ranges["batch"].min
    shapes = {each.name: tuple(sizes.get(n, n) for n in each.shape) for each in spec.inputs}
    return {
        each.name: rng.integers(0, 100, shapes[each.name])
        if each.dtype == "int64"
        else rng.standard_normal(shapes[each.name], np.float32)
        for each in spec.inputs
    }


def other(values, seed=1):
    """A tensor that is another, in the same type."""
    noise = np.random.default_rng(seed).standard_normal(values.shape)
    return (values.astype(np.float32) * 1.25 + 0.1 * noise).astype(values.dtype)


def live(bundle, backend="cpu", **settings):
    engine = choice.choose(bundle, backend, threads=1, **settings)
    return LiveWeights(bundle, engine, engine.stepper)


def merged(bundle, root, tensors):
    """A copy of a bundle whose files hold other tensors: what an export of them would write."""
    shutil.copytree(bundle.root, root)
    files = dict(bundle.files)
    for component, changed in tensors.items():
        name = bundle.components[component].weights
        write(root / name, changed)
        files[name] = file_record(root / name)
    return replace(bundle, root=root, files=files, pins=None)  # the files of the copy change


def write(file, tensors):
    """Put tensors in the place of those of a file."""
    header, data = read_header(file), np.memmap(file, np.uint8, mode="r+")
    for name, values in tensors.items():
        entry = header.entries[name]
        begin, end = header.start + entry.begin, header.start + entry.end
        data[begin:end] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    data.flush()


def same(one, two):
    assert one.keys() == two.keys()
    return all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("low_memory", [False, True])
def test_every_weight_is_that_of_a_file_with_it(bundle, tmp_path, low_memory):
    """No optimizer keeps the old value of any: to the bit what a session over such a file gives."""
    copied = merged(bundle, tmp_path / "copy", {})
    for component, spec in bundle.components.items():
        inputs, file = drawn(spec), copied.path(spec.weights)
        with live(bundle, low_memory=low_memory) as ours:
            base, stored = ours.executor(component).run(inputs), ours.stored(component)
            for part in range(PARTS):
                names = list(stored)[part::PARTS]
                new = {name: other(stored[name]) for name in names}
                ours.set(component, new)
                found = ours.executor(component).run(inputs)
                write(file, new)
                with live(copied, low_memory=low_memory, verify="never") as fresh:
                    assert same(found, fresh.executor(component).run(inputs)), (component, names)
                write(file, {name: stored[name] for name in names})
                assert not same(found, base)
            ours.set(component, {})
            assert same(ours.executor(component).run(inputs), base)


@pytest.mark.parametrize(("family", "backend", "loop"), WAYS)
def test_there_and_back_for_every_component(request, family, backend, loop, tmp_path):
    """All weights, biases included, one component after another; then those of a merged bundle."""
    bundle = eri.read_bundle(request.getfixturevalue(f"{family}_bundle"))
    pipe, new = eri.Pipeline(*opened(bundle, backend), loop), {}
    base = pipe("a red heart", **WORDS).images
    for component, spec in bundle.components.items():
        stored = read_tensors(bundle.path(spec.weights))
        new[component] = {name: other(each) for name, each in stored.items()}
        pipe.update_weights(new[component], component)
        changed = pipe("a red heart", **WORDS).images
        assert np.array_equal(changed, base) == (component == "vae_encoder")
        pipe.reset_weights(component)
    np.testing.assert_array_equal(pipe("a red heart", **WORDS).images, base)
    for component, tensors in new.items():
        pipe.update_weights(tensors, component)
    pipe.close()  # a component that is opened again has them still
    changed = pipe("a red heart", **WORDS).images
    pipe.reset_weights()
    np.testing.assert_array_equal(pipe("a red heart", **WORDS).images, base)
    pipe.close()
    pipe = eri.Pipeline(*opened(merged(bundle, tmp_path / "merged", new), backend), loop)
    np.testing.assert_array_equal(pipe("a red heart", **WORDS).images, changed)
    pipe.close()


def opened(bundle, backend="cpu"):
    engine = choice.choose(bundle, backend, threads=1)
    return bundle, engine, engine.stepper


def test_the_step_graph_and_the_denoiser_are_given_the_same(sd35, weights):
    name = list(weights)[5]
    pipe = eri.Pipeline(*opened(sd35))
    step = {**WORDS, "guidance_scale": 4.0}
    numpy = {**step, "guidance_rescale": 0.5}  # which the step graph does not hold
    base = [pipe("a red heart", **each).images for each in (step, numpy)]
    pipe.update_weights({name: other(weights[name])})
    changed = [pipe("a red heart", **each).images for each in (step, numpy)]
    assert not any(np.array_equal(a, b) for a, b in zip(base, changed, strict=True))
    pipe.reset_weights()
    for each, expected in zip((step, numpy), base, strict=True):
        np.testing.assert_array_equal(pipe("a red heart", **each).images, expected)
    pipe.close()


@pytest.mark.parametrize(("precision", "backend"), [("fp16", "cpu"), ("bf16", "openvino")])
def test_weights_of_16_bits(sd35_checkpoint, tmp_path, precision, backend):
    """In the types of the file, some of whose weights may be float32."""
    with only({"text_encoder", "denoiser"}):
        bundle = export(sd35_checkpoint, tmp_path / "half", precision=precision, ranges=STATIC)
    for component, spec in bundle.components.items():
        inputs, stored = drawn(spec), read_tensors(bundle.path(spec.weights))
        new = {name: other(each) for name, each in stored.items()}
        with live(bundle, backend) as ours:
            base = ours.executor(component).run(inputs)
            ours.set(component, new)
            changed = ours.executor(component).run(inputs)
            ours.set(component, {})
            assert same(ours.executor(component).run(inputs), base)
        copied = merged(bundle, tmp_path / component, {component: new})
        with live(copied, backend) as fresh:
            assert same(fresh.executor(component).run(inputs), changed)
        assert not same(changed, base)


# what fails changes nothing


class Failing(Executor):
    """An executor that takes no other weights."""

    def __init__(self, inner):
        self.inner, self.spec = inner, inner.spec

    def run(self, inputs):
        return self.inner.run(inputs)

    def close(self):
        self.inner.close()


def test_a_swap_that_fails_in_the_middle_leaves_the_old_weights_serving(sd35, weights):
    _, engine, stepper = opened(sd35)

    def component(name, overrides):
        made = engine(name, overrides)
        return Failing(made) if name == "vae_decoder" else made

    pipe = eri.Pipeline(sd35, component, stepper)
    name = next(iter(weights))
    pipe.update_weights({name: other(weights[name])})
    before = pipe("a red heart", **WORDS).images
    held = dict(pipe._live.overrides(DENOISER))
    decoder = read_tensors(sd35.path(sd35.components["vae_decoder"].weights))
    bias = next(name for name in decoder if name.endswith("bias"))
    with pytest.raises(BackendError, match="weights that stay as they are"):
        pipe._live.set_all(
            {DENOISER: {name: weights[name] * 3}, "vae_decoder": {bias: decoder[bias] + 1}}
        )
    np.testing.assert_array_equal(pipe("a red heart", **WORDS).images, before)
    assert dict(pipe._live.overrides(DENOISER)).keys() == held.keys()
    assert pipe._live.overrides("vae_decoder") == {}
    pipe.close()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda w: {"nothing.weight": w, "none.bias": w}, UnknownNameError, "2 unknown: nothing"),
        (lambda w: {"NAME": w[..., None]}, SizeError, "NAME: got"),
        (lambda w: {"NAME": w.astype(np.int32)}, UsageError, "got int32, expected float32"),
        (lambda w: {"NAME": np.full_like(w, np.nan)}, NonFiniteError, "NAME"),
        (lambda w: {"NAME": np.full(w.shape, 1e300)}, NonFiniteError, "NAME"),
        (lambda w: {"NAME": "text"}, UsageError, "NAME"),
        (lambda w: {3: w}, UnknownNameError, "1 unknown: 3"),
        (lambda w: None, UsageError, "got None"),
        (lambda w: "no-such-file.safetensors", NotACheckpointError, "no-such-file"),
    ],
)
def test_what_does_not_fit_is_refused(sd35, weights, change, error, said):
    name = "proj_out.weight"
    given = change(weights[name])
    if isinstance(given, dict):
        given = {name if key == "NAME" else key: each for key, each in given.items()}
    pipe = eri.Pipeline(*opened(sd35))
    with pytest.raises(error, match=said.replace("NAME", name)):
        pipe.update_weights(given)
    assert pipe._live.overrides(DENOISER) == {}


def test_a_component_the_bundle_has_not(sd35):
    with pytest.raises(UnknownNameError, match="'unet', expected one of denoiser, "):
        eri.Pipeline(*opened(sd35)).update_weights({}, "unet")


# what a caller may bring


def test_torch_and_numpy_of_any_float_and_files_are_the_same(sd35, weights, tmp_path):
    name = "proj_out.weight"
    exact = other(weights[name]).astype(ml_dtypes.bfloat16)  # which float16 holds too
    exact = exact.astype(np.float16).astype(np.float32)
    save_file({name: exact}, tmp_path / "new.safetensors")
    forms = [
        {name: exact},
        {name: exact.astype(np.float64)},
        {name: exact.astype(np.float16)},
        {name: exact.astype(ml_dtypes.bfloat16).astype(np.float32)},
        {name: torch.from_numpy(exact).requires_grad_()},
        {name: torch.from_numpy(exact).half()},
        tmp_path / "new.safetensors",
        str(tmp_path / "new.safetensors"),
    ]
    pipe = eri.Pipeline(*opened(sd35))
    for form in forms:
        pipe.reset_weights()
        pipe.update_weights(form)
        found = pipe._live.overrides(DENOISER)[name]
        assert found.dtype == weights[name].dtype
        np.testing.assert_allclose(found, exact, rtol=2**-8)
    narrow = torch.from_numpy(exact).bfloat16()
    pipe.update_weights({name: narrow})
    found = pipe._live.overrides(DENOISER)[name]
    np.testing.assert_array_equal(found, narrow.float().numpy())
    pipe.close()


def test_a_callers_array_is_copied_and_later_calls_add_up(sd35, weights):
    first, second = list(weights)[:2]
    mine = other(weights[first])
    expected = mine.copy()
    pipe = eri.Pipeline(*opened(sd35))
    pipe.update_weights({first: mine})
    mine[...] = 0
    pipe.update_weights({second: other(weights[second])})
    pipe.update_weights({})
    held = pipe._live.overrides(DENOISER)
    assert held.keys() == {first, second}
    np.testing.assert_array_equal(held[first], expected)
    pipe.update_weights({first: weights[first]})  # the file's own
    assert pipe._live.overrides(DENOISER).keys() == {second}
    pipe.close()


def test_nothing_moves_for_weights_that_serve_already(sd35, weights, monkeypatch):
    name = next(iter(weights))
    with live(sd35) as ours:
        ours.set(DENOISER, {name: other(weights[name])})
        monkeypatch.setattr(ours, "_apply", None)  # whoever calls it fails
        ours.set(DENOISER, {name: other(weights[name])})
        assert ours.swaps(DENOISER) == 1


# there and back, in any order


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=4))
def test_any_sequence_of_sets_ends_where_the_base_was(sd35, weights, swaps):
    names, inputs = list(weights)[::30], drawn(sd35.components[DENOISER])
    with live(sd35) as ours:
        base = ours.executor(DENOISER).run(inputs)
        for chosen, seed in swaps:
            ours.set(DENOISER, {names[chosen]: other(weights[names[chosen]], seed)})
        last = ours.executor(DENOISER).run(inputs)
        ours.set(DENOISER, {})
        assert same(ours.executor(DENOISER).run(inputs), base)
        ours.set(DENOISER, {names[chosen]: other(weights[names[chosen]], seed)})
        assert same(ours.executor(DENOISER).run(inputs), last)


# within a loop, and beside one


@pytest.mark.parametrize("loop", ["step", "numpy"])
def test_a_swap_between_steps_holds_from_the_next_step(sd35, weights, loop):
    new = {name: other(each) for name, each in weights.items()}
    pipe = eri.Pipeline(*opened(sd35), loop)
    request = pipe.request("a red heart", **WORDS)
    steps = pipe.denoise(request)
    first = next(steps)
    pipe.update_weights(new)
    rest = [step.x for step in steps]
    expected = [step.x for step in pipe.denoise(request, first)]
    assert len(rest) == 2
    np.testing.assert_array_equal(rest, expected)
    pipe.close()


def test_a_swap_waits_for_the_image_of_another_thread(sd35, weights):
    name = next(iter(weights))
    pipe = eri.Pipeline(*opened(sd35))
    base = pipe("a red heart", **WORDS).images
    begun, swapping, images = threading.Event(), threading.Event(), []

    def pause(step):
        if step.index == 0:
            begun.set()
            assert swapping.wait(60)

    def generate():
        images.append(pipe("a red heart", **WORDS, on_step=pause).images)

    def swap():
        swapping.set()
        pipe.update_weights({name: other(weights[name])})

    threads = [threading.Thread(target=each) for each in (generate, swap)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    for each in threads:
        each.join(60)
    np.testing.assert_array_equal(images[0], base)
    assert not np.array_equal(pipe("a red heart", **WORDS).images, base)
    pipe.close()


def test_a_swap_from_within_an_image_beside_another_is_refused(sd35, weights):
    name, pipe, said = next(iter(weights)), eri.Pipeline(*opened(sd35)), []

    def swap(step):
        try:
            pipe.update_weights({name: other(weights[name])})
        except UsageError as error:
            said.append(str(error))

    def beside(step):
        if step.index == 0:
            inner = threading.Thread(target=lambda: pipe("a dog", **WORDS, on_step=swap))
            inner.start()
            inner.join(60)

    pipe("a red heart", **WORDS, on_step=beside)
    assert len(said) == 3
    assert "another thread makes one" in said[0]
    pipe("a red heart", **WORDS, on_step=swap)  # alone it may
    assert len(said) == 3
    assert pipe._live.overrides(DENOISER).keys() == {name}
    pipe.close()


def test_a_previews_colours_are_fitted_anew_for_another_encoder(sd35):
    pipe = eri.Pipeline(*opened(sd35))
    request = pipe.request("a red heart", **WORDS | {"output_type": "pil"})
    (*_, step) = pipe.denoise(request)
    before = np.asarray(pipe.preview(request, step)[0])
    encoder = read_tensors(sd35.path(sd35.components["vae_encoder"].weights))
    pipe.update_weights({name: other(each) for name, each in encoder.items()}, "vae_encoder")
    assert not np.array_equal(np.asarray(pipe.preview(request, step)[0]), before)
    pipe.reset_weights()
    np.testing.assert_array_equal(np.asarray(pipe.preview(request, step)[0]), before)
    pipe.close()
