"""`callback_on_step_end`: sees, changes and stops a call, on either loop."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import eri_runtime as eri
from eri_runtime.errors import NonFiniteError, SizeError, UnknownNameError, UsageError

SMALL = {"num_inference_steps": 4, "height": 32, "width": 32, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipe(sdxl_bundle):
    with eri.load(sdxl_bundle, "cpu") as pipe:
        yield pipe


def test_a_callback_that_changes_nothing_leaves_every_bit(pipe):
    seen = []

    def watch(call, step, timestep, arrays):
        seen.append((step, round(timestep), arrays["latents"].shape, call.num_timesteps))
        return arrays if step else None

    result = pipe("a", **SMALL, seed=0, callback_on_step_end=watch)
    np.testing.assert_array_equal(result.images, pipe("a", **SMALL, seed=0).images)
    assert [each[0] for each in seen] == [0, 1, 2, 3]
    assert {each[2:] for each in seen} == {((1, 4, 16, 16), 4)}


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_a", "ddim"])
def test_changed_latents_are_those_of_the_next_step(sdxl_bundle, sampler):
    """In place or as a new array, on the step graph and in NumPy, with samplers that remember."""

    def new(call, step, timestep, arrays):
        return {"latents": arrays["latents"] * 0.5} if step == 1 else {}

    def in_place(call, step, timestep, arrays):
        if step == 1:
            arrays["latents"] *= 0.5

    images = []
    for loop in ("numpy", "auto"):
        with eri.load(sdxl_bundle, "cpu", loop=loop) as pipe:
            for callback in (new, in_place):
                words = {**SMALL, "sampler": sampler, "callback_on_step_end": callback}
                images.append(pipe("a", seed=0, **words).images)
            plain = pipe("a", seed=0, **SMALL, sampler=sampler).images
    assert np.abs(images[0] - plain).max() > 0.1
    for each in images[1:]:
        np.testing.assert_allclose(each, images[0], atol=2e-4 * np.abs(plain).max())


def test_torch_callbacks_get_tensors(pipe):
    kinds = []

    def watch(call, step, timestep, arrays):
        kinds.append(type(arrays["latents"]))
        return arrays

    pipe("a", **SMALL, callback_on_step_end=watch, generator=torch.Generator().manual_seed(0))
    pipe("a", **SMALL, callback_on_step_end=watch, seed=0)
    assert set(kinds[:4]) == {torch.Tensor}
    assert set(kinds[4:]) == {np.ndarray}


def test_a_callback_object_of_diffusers_ends_guidance(pipe):
    from diffusers.callbacks import SDXLCFGCutoffCallback

    cut = SDXLCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    cut_off = pipe("a", **SMALL, seed=0, callback_on_step_end=cut).images
    request = pipe.request("a", **SMALL, seed=0)
    levels = pipe.schedule(request).sigma / pipe.schedule(request).alpha
    limit = (float(levels[1]) * 0.999, float("inf"))  # the first two steps alone
    expected = pipe("a", **SMALL, seed=0, guidance_interval=limit).images
    assert np.abs(cut_off - pipe("a", **SMALL, seed=0).images).max() > 0.01
    np.testing.assert_allclose(cut_off, expected, atol=2e-4 * np.abs(expected).max())


def test_interrupt_stops_this_call_and_that_of_the_pipeline_all(pipe):
    steps = []

    def stop(call, step, timestep, arrays):
        steps.append(step)
        call._interrupt = step == 1
        return arrays

    pipe("a", **SMALL, seed=0, callback_on_step_end=stop)
    assert steps == [0, 1]
    seen = []

    def watch(step):
        seen.append(step.index)
        if step.index == 2:
            thread = threading.Thread(target=lambda: setattr(pipe, "_interrupt", True))
            thread.start()
            thread.join()

    pipe("a", **SMALL, seed=0, on_step=watch)
    assert seen == [0, 1, 2]
    assert len(list(pipe.denoise(pipe.request("a", **SMALL)))) == 4
    assert pipe._interrupt is pipe.interrupt is False


def test_the_callback_runs_in_a_loop_of_ones_own_and_not_with_others(pipe):
    called = []
    request = pipe.request("a", **SMALL, seed=0, callback_on_step_end=lambda *_: called.append(1))
    assert len(list(pipe.denoise(request))) == len(called) == 4
    with pytest.raises(UsageError, match=r"^callback_on_step_end: got .*pipe\.denoise"):
        pipe.begin(request)


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (3, UsageError, "what callback_on_step_end returns: got 3"),
        ({"latents": np.zeros((1, 4, 3, 3), np.float32)}, SizeError, "latents"),
        ({"latents": "x"}, UsageError, "latents"),
        ({"latents": np.full((1, 4, 16, 16), np.nan, np.float32)}, NonFiniteError, "latents"),
        ({"prompt_embeds": np.zeros((3, 16, 64), np.float32)}, SizeError, "1 or 2 rows"),
        ({"add_time_ids": np.zeros((1, 5), np.float32)}, SizeError, "add_time_ids"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(pipe, answer, error, says):
    with pytest.raises(error, match=says):
        pipe("a", **SMALL, callback_on_step_end=lambda *_: answer)


def test_words_of_callbacks_that_cannot_be_are_refused(pipe):
    name = "callback_on_step_end_tensor_inputs"
    with pytest.raises(UnknownNameError, match=r"prompt_embeds, add_text_embeds, add_time_ids"):
        pipe.request("a", callback_on_step_end=print, **{name: ["noise"]})
    with pytest.raises(UsageError, match=f"^{name}: got no callback_on_step_end"):
        pipe.request("a", **{name: ["prompt_embeds"]})
    with pytest.raises(UsageError, match="a function"):
        pipe.request("a", callback_on_step_end=3)
    weighted = {"callback_on_step_end": lambda *_: None, name: ["prompt_embeds"]}
    with pytest.raises(UsageError, match="embeddings of weighted prompts"):
        pipe({"a": 0.5, "b": 0.5}, **SMALL, **weighted)

    def other(call, step, timestep, arrays):
        call._guidance_scale = "much"

    with pytest.raises(UsageError, match=r"^pipe\._guidance_scale: got 'much'"):
        pipe("a", **SMALL, callback_on_step_end=other)
