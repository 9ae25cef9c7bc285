"""Guidance end to end: per image, in an interval, rescaled, of several prompts, or none."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline

import eri_runtime as eri
from eri_runtime.errors import EriError, UnknownNameError, UsageError
from eri_runtime.executors.ort.step_graph import OrtStepLoop
from eri_runtime.pipeline.request_runner import RequestRunner
from eri_runtime.request.configs import AncestralSamplerConfig, GuidanceConfig, SamplingConfig
from eri_runtime.sampling.guidance import cfg_mix, rescale_guided
from eri_runtime.text.prompts import make_prompt, make_prompts

FAMILIES = ["sdxl", "sd35", "flux"]
WORDS = {"height": 32, "width": 48, "num_inference_steps": 3, "output_type": "latent", "seed": 5}
# one image alone and the same in a batch: other kernels round differently, three steps amplify
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=FAMILIES)
def pipe(request):
    """A tiny family."""
    with eri.load(request.getfixturevalue(f"{request.param}_bundle")) as pipe:
        yield pipe


@pytest.fixture
def rows(monkeypatch):
    """The number of rows of every call of the denoiser, or of its step graph."""
    counts, run, step = [], RequestRunner._run_held, OrtStepLoop._step

    def running(course, name, inputs):
        if name == "denoiser":
            counts.append(len(inputs["sample"]))
        return run(course, name, inputs)

    def stepping(loop, row, state):
        counts.append(loop._bound[row.key].arrays["mix"].size)
        return step(loop, row, state)

    monkeypatch.setattr(RequestRunner, "_run_held", running)
    monkeypatch.setattr(OrtStepLoop, "_step", stepping)
    return counts


def guided(pipe, scale):
    """CFG in the family's own words."""
    if pipe.bundle.family == "flux":
        return {"negative_prompt": "blurry", "true_cfg_scale": scale, "guidance_scale": 3.5}
    return {"negative_prompt": "blurry", "guidance_scale": scale}


def assert_close(mine, reference, tolerance=TOLERANCE):
    assert mine.shape == reference.shape
    assert np.abs(mine - reference).max() <= tolerance * np.abs(reference).max()


def assert_differ(one, other):
    assert np.abs(one - other).max() > 1e-3 * np.abs(other).max()


def test_each_image_has_its_own_scale(pipe):
    words = WORDS | {"seed": [5, 6, 7]}
    many = pipe("a red heart", num_images_per_prompt=3, **words, **guided(pipe, [1.0, 3.0, 6.5]))
    for i, scale in enumerate([1.0, 3.0, 6.5]):
        alone = pipe("a red heart", **WORDS | {"seed": 5 + i}, **guided(pipe, scale))
        assert_close(many.images[i : i + 1], alone.images)


def test_a_scale_a_prompt_is_for_all_of_its_images(pipe):
    words = WORDS | {"num_images_per_prompt": 2}
    many = pipe(["a red heart", "a cat"], **words, **guided(pipe, [2.0, 5.0]))
    each = pipe(["a red heart", "a cat"], **words, **guided(pipe, [2.0, 2.0, 5.0, 5.0]))
    np.testing.assert_array_equal(many.images, each.images)


def test_embedded_guidance_is_told_to_each_image(flux_bundle):
    with eri.load(flux_bundle) as pipe:
        many = pipe("a cat", num_images_per_prompt=2, guidance_scale=[0.0, 5.0], **WORDS).images
        alone = pipe("a cat", guidance_scale=5.0, **WORDS | {"seed": 6}).images
        told = pipe("a cat", guidance_scale=1.0, guidance_embedding=5.0, **WORDS | {"seed": 6})
    assert_close(many[1:], alone)
    np.testing.assert_array_equal(told.images, alone)


def test_without_weight_a_condition_is_not_run(pipe, rows):
    pipe("a red heart", **WORDS, **guided(pipe, 1.0))
    assert rows == [1, 1, 1]


def test_cfg_acts_within_its_interval_only(pipe, rows):
    """Outside of it the negative pass is left out; the states are those of a loop done by hand."""
    everywhere = pipe("a red heart", **WORDS, **guided(pipe, 4.0)).images
    request = pipe.request("a red heart", **WORDS, **guided(pipe, 4.0))
    middle = pipe.table(request).level(1)
    rows.clear()
    words = WORDS | {"guidance_interval": (middle * 0.99, middle * 1.01)}
    some = pipe("a red heart", **words, **guided(pipe, 4.0)).images
    assert rows == [1, 2, 1]
    plain = [*pipe.denoise(pipe.request("a red heart", **WORDS, **guided(pipe, 1.0)))]
    full = pipe.denoise(request, start=plain[0])
    last = pipe.denoise(pipe.request("a red heart", **WORDS, **guided(pipe, 1.0)), next(full))
    np.testing.assert_array_equal(some, next(last).x)
    assert_differ(some, everywhere)
    whole = pipe("a red heart", **WORDS, guidance_interval=(0, inf), **guided(pipe, 4.0)).images
    np.testing.assert_array_equal(whole, everywhere)


def test_rescaled_guidance_is_diffusers(sdxl_checkpoint, sdxl_bundle):
    theirs = StableDiffusionXLPipeline.from_pretrained(sdxl_checkpoint)
    theirs.set_progress_bar_config(disable=True)
    words = {"prompt": ["a red heart", "a cat"], "height": 32, "width": 48, "guidance_scale": 7.0}
    words |= {"num_inference_steps": 3, "guidance_rescale": 0.7, "output_type": "latent"}
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (5, 6)]
    with eri.load(sdxl_bundle) as pipe:
        mine = pipe(**words, seed=5).images
        without = pipe(**words | {"guidance_rescale": 0.0}, seed=5).images
    assert_close(mine, theirs(**words, generator=generators).images.numpy())
    assert_differ(mine, without)


def test_rescaling_gives_each_image_the_deviation_it_had():
    normal = np.random.default_rng(0).standard_normal
    plain = normal((3, 4, 5)).astype(np.float32)
    wide = (np.array([2, 5, 0.5])[:, None, None] * normal((3, 4, 5))).astype(np.float32)
    np.testing.assert_allclose(
        rescale_guided(wide, plain, 1.0).std(axis=(1, 2)), plain.std(axis=(1, 2)), rtol=1e-5
    )
    np.testing.assert_array_equal(rescale_guided(wide, plain, 0.0), wide)
    flat = np.zeros((1, 4, 5), np.float32)
    np.testing.assert_array_equal(rescale_guided(flat, plain[:1], 0.7), flat)


def test_several_prompts_are_mixed_by_their_weights(pipe):
    """One Euler step is affine in the prediction, so the mix of states is the state of the mix."""
    words = WORDS | {"num_inference_steps": 1, "seed": [5, 6]}
    scale, weights = 3.0, np.array([[0.7, 1.0], [0.5, 0.0], [-0.2, 0.0]])
    prompts = [{"a red heart": 0.7, "a cat": 0.5, "snow": -0.2}, "a red heart"]
    mine = pipe(prompts, **words, **guided(pipe, scale)).images
    plain = words | ({"guidance_scale": 3.5} if pipe.bundle.family == "flux" else {})
    states = [
        pipe([text] * 2, **{"guidance_scale": 1.0} | plain).images
        for text in ("blurry", "a red heart", "a cat", "snow")
    ]
    mix = cfg_mix(scale, weights).reshape(4, 2, *[1] * (mine.ndim - 1))
    assert_close(mine, np.sum(mix * np.stack(states), axis=0))


def test_a_prompt_of_weight_one_is_the_prompt(pipe):
    one = pipe("a red heart", **WORDS, **guided(pipe, 4.0)).images
    np.testing.assert_array_equal(
        pipe({"a red heart": 1}, **WORDS, **guided(pipe, 4.0)).images, one
    )


def test_more_conditions_than_the_graph_takes_rows_go_in_pieces(pipe, rows):
    most = pipe.bundle.components["denoiser"].ranges["batch"].max
    texts = {f"prompt {i}": 1 / most for i in range(most + 1)}
    many = pipe(texts, **WORDS | {"num_inference_steps": 1}, **guided(pipe, 2.0)).images
    assert rows == [most, 2]
    assert np.isfinite(many).all()


def test_bypassed_guidance_is_one_plain_pass(pipe, rows):
    words = WORDS | {"guidance": GuidanceConfig(7.0, bypass_guidance=True)}
    if pipe.bundle.family == "flux":
        words |= {"negative_prompt": "blurry", "true_cfg_scale": 4.0}
    mine = pipe("a red heart", **words).images
    assert rows == [1, 1, 1]
    other = pipe("a red heart", **WORDS, guidance_scale=0.0 if "flux" in str(words) else 1.0).images
    if pipe.bundle.family == "flux":
        assert_differ(mine, other)  # a guidance of 0 is embedded; here nothing is
    else:
        np.testing.assert_array_equal(mine, other)


def test_dynamic_thresholding_is_diffusers(sdxl_checkpoint, sdxl_bundle):
    """Against a solver whose only quantity is x_0: diffusers' DDIM keeps eps of the x_0 before."""
    theirs = StableDiffusionXLPipeline.from_pretrained(sdxl_checkpoint)
    theirs.set_progress_bar_config(disable=True)
    config = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1e6}
    scheduler = theirs.scheduler
    theirs.scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config, **config)
    words = {"prompt": "a red heart", "height": 32, "width": 48, "guidance_scale": 7.0}
    words |= {"num_inference_steps": 4, "output_type": "latent"}
    final = theirs(**words, generator=torch.Generator("cpu").manual_seed(5)).images.numpy()
    levels = theirs.scheduler.sigmas[:-1].tolist()  # its `leading` is not that of other schedulers
    words |= {"sampler": "dpmpp_2m", "sigmas": levels, "seed": 5}
    with eri.load(sdxl_bundle) as pipe:
        mine = pipe(**words, dynamic_thresholding=(1.0, 0.9)).images
        without = pipe(**words).images
        doubled = pipe(**words, dynamic_thresholding=(1.0, 0.9), hook=lambda x: 2 * x).images
    assert_close(mine, final)
    assert_differ(mine, without)
    assert_differ(doubled, mine)


def test_configurations_stand_for_words(pipe):
    config = SamplingConfig(2, 4.0, 32, 48, seed=5)
    words = {"num_inference_steps": 2, "height": 32, "width": 48, "seed": 5, "guidance_scale": 4.0}
    given = pipe("a cat", config=config, output_type="latent")
    np.testing.assert_array_equal(given.images, pipe("a cat", output_type="latent", **words).images)
    words |= {"config": config, "guidance": GuidanceConfig(3.0), "height": None, "width": 32}
    request = pipe.request("a cat", **words)
    assert (request.height, request.width, request.steps) == (32, 32, 2)
    assert pipe.request("a cat", config=config, guidance=GuidanceConfig(3.0)).seeds == (5,)
    ancestral = AncestralSamplerConfig(eta=0.25, s_noise=1.1)
    request = pipe.request("a cat", sampler="euler_a", ancestral=ancestral)
    assert request.options == {"eta": 0.25, "s_noise": 1.1}
    assert (
        pipe.request("a cat", sampler="euler_a", ancestral=ancestral, eta=0.0).options["eta"] == 0
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"guidance_scale": [1.0, 2.0, 3.0]}, "guidance_scale"),
        ({"guidance_scale": "much"}, "guidance_scale"),
        ({"guidance_scale": [1.0, float("nan")]}, "guidance_scale"),
        ({"true_cfg_scale": -1.0}, "true_cfg_scale"),
        ({"guidance_embedding": -1.0}, "guidance_embedding"),
        ({"guidance_rescale": 1.5}, "guidance_rescale"),
        ({"guidance_rescale": float("nan")}, "guidance_rescale"),
        ({"guidance_interval": (2.0, 1.0)}, "guidance_interval"),
        ({"guidance_interval": (float("nan"), 1.0)}, "guidance_interval"),
        ({"guidance_interval": 1.0}, "guidance_interval"),
        ({"dynamic_thresholding": (1.0, 99.5)}, "percentile"),
        ({"dynamic_thresholding": 1.0}, "dynamic_thresholding"),
        ({"hook": 3}, "hook"),
        ({"sigmas": "karas"}, "sigmas"),
        ({"sigmas": 0.5}, "sigmas"),
        ({"num_images_per_prompt": "2"}, "num_images_per_prompt"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"height": 32.0}, "height"),
        ({"width": "32"}, "width"),
        ({"max_sequence_length": 7.5}, "max_sequence_length"),
        ({"sampler_options": 3}, "sampler_options"),
        ({"sampler_options": ["eta"]}, "sampler_options"),
        ({"sigmas": [0.5, 0.6]}, "sigmas"),
        ({"sigmas": [float("nan")]}, "sigmas"),
        ({"sampler_options": {"s_churn": 1.0}}, "s_churn"),
        ({"eta": 2.0}, "eta"),
        ({"noise": "white"}, "noise"),
        ({"config": {"height": 32}}, "config"),
        ({"guidance": 3.0}, "guidance"),
        ({"guidnce": 3.0}, "keyword"),
    ],
)
def test_a_bad_word_is_named(sd35_bundle, words, named):
    words = {"height": 32, "width": 32} | words
    with eri.load(sd35_bundle) as pipe, pytest.raises(UsageError, match=named):
        pipe.denoise(pipe.request(["a", "b"], **words))


@pytest.mark.parametrize(
    "prompt", [{}, {"a": "b"}, {"a": float("nan")}, {3: 1.0}, [], [3], None, [{}], {"a": None}]
)
def test_what_is_no_prompt_is_refused(prompt):
    with pytest.raises(UsageError, match="prompt"):
        make_prompts(prompt)


def test_prompts_are_written_as_automatic1111_writes_them():
    assert str(make_prompt("a, b")) == "a, b"
    assert str(make_prompt({"a": 1.0})) == "a"
    assert str(make_prompt({"a": 0.5, "b": 1})) == "a :0.5 AND b :1"


def test_errors_are_of_one_tree():
    with pytest.raises(EriError):
        make_prompts({"a": "b"})
    assert issubclass(UnknownNameError, UsageError)
