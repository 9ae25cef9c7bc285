"""Components that open while others are at work: what is opened, once, and what is drawn then."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.errors import BackendError, OutOfMemoryError
from eri_runtime.executors.choice import Engine
from eri_runtime.executors.openvino import executor as openvino_module
from eri_runtime.memory import manager
from eri_runtime.memory.available import AvailableMemory
from eri_runtime.memory.modes import MemoryEfficientSamplingConfig
from eri_runtime.weights.background_opening import BackgroundOpening

FAMILIES = ["sdxl", "sd35", "flux"]
PROMPT = "a red heart"
WORDS = {"height": 32, "width": 48, "num_inference_steps": 3, "seed": 3, "output_type": "np"}


@pytest.fixture(params=FAMILIES)
def bundle(request):
    """Each family's."""
    return request.getfixturevalue(f"{request.param}_bundle")


@pytest.fixture
def opened(monkeypatch):
    """What is opened, in order: a component or `step`, and whether ahead."""
    seen = []

    def note(name):
        seen.append((name, threading.current_thread().name.startswith("eri-open")))

    component, step = Engine.__call__, Engine.stepper

    def open_component(self, name, *given):
        note(name)
        return component(self, name, *given)

    def open_step(self, *given):
        stepper = step(self, *given)
        if stepper is not None:
            note("step")
        return stepper

    monkeypatch.setattr(Engine, "__call__", open_component)
    monkeypatch.setattr(Engine, "stepper", open_step)
    return seen


def images(bundle, backend, prompt=PROMPT, prepared=True, **words):
    """What a call makes, or one whose pipeline prepares nothing."""
    with eri.load(bundle, backend, cache=False) as pipe:
        if not prepared:
            pipe.prepare = lambda _: None
        return pipe(prompt, **{**WORDS, **words}).images


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_a_call_opens_all_but_text_encoders_ahead_and_once(bundle, backend, opened):
    images(bundle, backend)
    names = [name for name, _ in opened]
    assert len(set(names)) == len(names)
    ahead = {name for name, elsewhere in opened if elsewhere}
    assert ahead == {"step" if backend == "cpu" else "denoiser", "vae_decoder"}


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
@pytest.mark.parametrize(
    "words",
    [{}, {"guidance_scale": 1.0}, {"num_images_per_prompt": 3}, {"guidance_rescale": 0.5}],
    ids=["usual", "no CFG", "three images", "rescaled"],
)
def test_the_picture_is_that_of_a_pipeline_that_opens_when_needed(bundle, backend, words):
    first, second = (images(bundle, backend, prepared=each, **words) for each in (True, False))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"guidance_scale": 1.0},
        {"guidance_scale": 3.0, "negative_prompt": "blurry"},
        {"num_images_per_prompt": 3},
        {"height": 48, "width": 32},
    ],
    ids=["usual", "no CFG", "CFG", "three images", "upright"],
)
def test_openvino_compiles_each_graph_once_for_the_shapes_that_come(bundle, words, monkeypatch):
    compiled = []
    inner = openvino_module.compile_model

    def counted(core, model, shapes, options):
        compiled.append(shapes)
        return inner(core, model, shapes, options)

    monkeypatch.setattr(openvino_module, "compile_model", counted)
    images(bundle, "openvino", **words)
    components = eri.read_bundle(bundle).components
    assert len(compiled) == len(components) - ("vae_encoder" in components)
    assert None not in compiled  # which is for any shapes


def test_embeddings_that_are_given_have_a_length_of_their_own(sd35_bundle, monkeypatch):
    with eri.load(sd35_bundle, "openvino", cache=False) as pipe:
        condition = pipe.encode_prompt(PROMPT, 12)
    given = {"prompt_embeds": condition.embeds, "pooled_prompt_embeds": condition.pooled}
    compiled, inner = [], openvino_module.compile_model

    def counted(*words):
        compiled.append(words[2])
        return inner(*words)

    monkeypatch.setattr(openvino_module, "compile_model", counted)
    images(sd35_bundle, "openvino", None, guidance_scale=1.0, **given)
    assert len(compiled) == 2
    assert None not in compiled


def test_a_wrong_guess_is_compiled_again_for_what_comes(sd35_bundle, monkeypatch):
    compiled, inner = [], openvino_module.compile_model

    def counted(core, model, shapes, options):
        compiled.append(shapes)
        return inner(core, model, shapes, options)

    with eri.load(sd35_bundle, "openvino", cache=False) as pipe:
        monkeypatch.setattr(openvino_module, "compile_model", counted)
        pipe.prepare(pipe.request(PROMPT, **WORDS))
        pipe.decode(np.zeros((1, 16, 6, 10), np.float32), 24, 40)
    decoders = [each["latents"][2:] for each in compiled if each and "latents" in each]
    assert decoders == [(8, 12), (6, 10)]


def test_latents_need_no_decoder(sd35_bundle, opened):
    with eri.load(sd35_bundle, "cpu") as pipe:
        pipe(PROMPT, **{**WORDS, "output_type": "latent"})
    assert "vae_decoder" not in dict(opened)


def test_what_is_open_is_not_opened_again(sd35_bundle, opened):
    with eri.load(sd35_bundle, "cpu") as pipe:
        pipe(PROMPT, **WORDS)
        count = len(opened)
        pipe(PROMPT, **WORDS)
        pipe.prepare(pipe.request(PROMPT, **WORDS))
    assert len(opened) == count


def test_a_second_time_waits_for_nothing(sd35_bundle, monkeypatch):
    go, begun, component = threading.Event(), [], Engine.__call__

    def slow(self, name, *given):
        begun.append(name)
        go.wait()
        return component(self, name, *given)

    monkeypatch.setattr(Engine, "__call__", slow)
    with eri.load(sd35_bundle, "openvino", cache=False) as pipe:
        release = threading.Timer(60, go.set)  # what would wait ends all the same, and fails
        release.start()
        for _ in range(2):
            pipe.prepare(pipe.request(PROMPT, **WORDS))
        assert not go.is_set()
        go.set()
        release.cancel()
    assert sorted(begun) == ["denoiser", "vae_decoder"]


def test_nothing_is_opened_ahead_where_one_is_open_at_a_time(sd35_bundle, opened):
    memory = MemoryEfficientSamplingConfig(enable_cpu_offload=True)
    with eri.load(sd35_bundle, "cpu", memory=memory) as pipe:
        pipe(PROMPT, **WORDS)
    assert not any(ahead for _, ahead in opened)


def test_nothing_is_opened_ahead_where_memory_may_not_do_for_all(sd35_bundle, opened):
    with eri.load(sd35_bundle, "cpu") as pipe:
        guard = pipe._memory.guard
        for left, opens in ((20e6, False), (1e12, True)):
            guard._left = lambda left=left: AvailableMemory(
                bytes=int(left), limit="a control group"
            )
            pipe.prepare(pipe.request(PROMPT, **WORDS))
            pipe.close()
            assert any(ahead for _, ahead in opened) is opens


def test_a_bundle_that_does_not_say_what_it_takes_is_opened_when_needed(
    sd35_bundle, opened, monkeypatch
):
    monkeypatch.setattr(manager, "stage_need", lambda *_, **__: None)
    images(sd35_bundle, "cpu")
    assert not any(ahead for _, ahead in opened)


@pytest.mark.parametrize("error", [BackendError, OutOfMemoryError, MemoryError])
def test_what_fails_ahead_is_opened_again_by_who_needs_it(sd35_bundle, error, monkeypatch):
    expected = images(sd35_bundle, "openvino")
    component, failed = Engine.__call__, []

    def once(self, name, *given):
        if threading.current_thread().name.startswith("eri-open"):
            failed.append(name)
            raise MemoryError if error is MemoryError else error(name, got="x", expected="y")
        return component(self, name, *given)

    monkeypatch.setattr(Engine, "__call__", once)
    np.testing.assert_array_equal(images(sd35_bundle, "openvino"), expected)
    assert sorted(failed) == ["denoiser", "vae_decoder"]


def test_an_engine_that_refuses_says_so_to_the_caller(sd35_bundle, monkeypatch):
    def refuse(self, name, *_):
        raise BackendError(name, got="a broken graph", expected="a graph")

    monkeypatch.setattr(Engine, "__call__", refuse)
    with eri.load(sd35_bundle, "openvino", cache=False) as pipe:
        pipe.prepare(pipe.request(PROMPT, **WORDS))
        with pytest.raises(BackendError, match="vae_decoder: got a broken graph"):
            pipe.decode(np.zeros((1, 16, 8, 12), np.float32), 32, 48)


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_new_weights_are_those_of_what_was_opening(sd35_bundle, backend):
    with eri.load(sd35_bundle, backend) as pipe:
        name, values = next(iter(pipe._live.stored("denoiser").items()))
        changed = {name: values + np.asarray(0.5, values.dtype)}
        pipe.prepare(pipe.request(PROMPT, **WORDS))
        pipe.update_weights(changed)
        found = pipe(PROMPT, **WORDS).images
    with eri.load(sd35_bundle, backend) as pipe:
        pipe.prepare = lambda _: None
        before = pipe(PROMPT, **WORDS).images
        pipe.update_weights(changed)
        expected = pipe(PROMPT, **WORDS).images
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, before)


def test_closing_closes_what_was_opening(sd35_bundle, monkeypatch):
    closed, component = [], Engine.__call__

    def watched(self, name, *given):
        time.sleep(0.05)  # so that it is not open yet when the pipeline is closed
        executor = component(self, name, *given)
        close = executor.close
        executor.close = lambda: (closed.append(name), close())
        return executor

    monkeypatch.setattr(Engine, "__call__", watched)
    with eri.load(sd35_bundle, "openvino", cache=False) as pipe:
        pipe.prepare(pipe.request(PROMPT, **WORDS))
    assert sorted(closed) == ["denoiser", "vae_decoder"]


def test_what_is_begun_twice_runs_once_and_is_had_by_all_who_wait():
    opening, made = BackgroundOpening(), []
    go = threading.Event()

    def slow():
        go.wait()
        made.append(object())
        return made[-1]

    opening.begin("a", slow)
    opening.begin("a", slow)
    found = []
    waiting = [threading.Thread(target=lambda: found.append(opening.take("a"))) for _ in range(3)]
    for each in waiting:
        each.start()
    time.sleep(0.05)
    go.set()
    for each in waiting:
        each.join()
    assert len(made) == 1
    assert found == made * 3
    assert opening.take("a") is None
    assert opening.names == ()
