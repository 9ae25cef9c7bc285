"""Many prompts in batches: an image is its job's alone, whatever batch it was in."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import eri_runtime as eri
from eri_runtime.batch import job_batches
from eri_runtime.batch.job_batches import batch_sample, samples
from eri_runtime.errors import SizeError, UnknownNameError, UsageError
from eri_runtime.latents.size_limits import images_at_once
from eri_runtime.pipeline.pipeline import Pipeline
from eri_runtime.request.configs import SamplingConfig
from eri_runtime.request.jobs import Job, assign_seeds, group_into_batches
from eri_runtime.sampling.torch_randn import MAX_SEED
from eri_runtime.training.image_files import save_image

PROMPTS = ["a red heart", "ein Apfel, rot", "", "心", "a red heart", "x", "blue"]
CONFIG = SamplingConfig(2, 4.0, 32, 48, seed=5)
FAMILIES = pytest.mark.parametrize("family", ["sdxl", "sd35", "flux"])


@pytest.fixture
def pipe(request, family):
    with eri.load(request.getfixturevalue(f"{family}_bundle"), "cpu") as pipe:
        yield pipe


@pytest.fixture
def calls(monkeypatch):
    """The seeds of every call of a pipeline, in turn."""
    seen, call = [], Pipeline.__call__

    def listening(self, *arguments, **words):
        seen.append(words["seed"])
        return call(self, *arguments, **words)

    monkeypatch.setattr(Pipeline, "__call__", listening)
    return seen


def alone(pipe, job, **words):
    """The picture of a call for one job, made with the words it has."""
    own = {name: value for name, value in vars(job).items() if "prompt" not in name}
    negative = {"negative_prompt": job.negative_prompt}
    (image,) = pipe(job.prompt, **negative, **{**words, **own}).images
    return np.asarray(image)


@FAMILIES
def test_an_image_has_the_same_bits_in_any_batch(pipe, family):
    scales = [1.0, 2.0, 7.0, 0.0, 3.5, 4.0, 5.0]
    jobs = [Job(text, guidance_scale=g) for text, g in zip(PROMPTS, scales, strict=True)]
    one = batch_sample(jobs, CONFIG, 1, pipe=pipe, negative_prompt="grey", true_cfg_scale=2.0)
    assert [image.shape for image in one] == [(3, 32, 48)] * 7
    assert len({image.tobytes() for image in one}) == 7
    for size in (2, 3, 7):
        many = batch_sample(
            jobs, CONFIG, size, pipe=pipe, negative_prompt="grey", true_cfg_scale=2.0
        )
        for mine, theirs in zip(many, one, strict=True):
            assert mine.dtype == np.float32
            np.testing.assert_array_equal(mine, theirs)


@FAMILIES
def test_openvino_is_independent_of_the_batch_but_for_rounding(request, family):
    with eri.load(request.getfixturevalue(f"{family}_bundle"), "openvino") as pipe:
        one, many = (batch_sample(PROMPTS, CONFIG, size, pipe=pipe) for size in (1, 7))
    # it rounds otherwise from one call to the next, even of the same batch: 5e-6 was measured
    np.testing.assert_allclose(many, one, rtol=0, atol=1e-4)


@FAMILIES
def test_an_image_is_that_of_a_call_of_its_own(pipe, family, calls):
    jobs = [
        Job("a red heart"),
        Job("a star", negative_prompt="blurry", seed=0, true_cfg_scale=3.0),
        Job("a cat", guidance_scale=1.0),
        Job("a dog", negative_prompt="", true_cfg_scale=2.0, guidance_scale=6.0),
        Job("wide", width=64, num_inference_steps=1),
        Job("also wide", width=64, num_inference_steps=1),
    ]
    pictures = batch_sample(jobs, CONFIG, pipe=pipe, output_type="pil")
    apart = [[5, 7], [0, 8], [9, 10]]
    assert calls == ([[5, 0, 7, 8], [9, 10]] if family == "sd35" else apart)
    for i, (job, picture) in enumerate(zip(jobs, pictures, strict=True)):
        own = replace(job, seed=CONFIG.seed + i if job.seed is None else job.seed)
        np.testing.assert_array_equal(np.asarray(picture), alone(pipe, own, config=CONFIG))


@pytest.mark.parametrize("family", ["sd35"])
def test_jobs_have_samplers_of_their_own(pipe, calls, family):
    jobs = [Job("a"), Job("b", sampler="flow_heun"), Job("c"), Job("d", sampler="flow_euler")]
    pictures = batch_sample(jobs, CONFIG, 2, pipe=pipe, sampler="euler_a", eta=0, output_type="pil")
    assert calls == [[5, 7], [6], [8]]
    for i, (job, picture) in enumerate(zip(jobs, pictures, strict=True)):
        job = replace(job, seed=5 + i, sampler=job.sampler or "euler_a")
        np.testing.assert_array_equal(np.asarray(picture), alone(pipe, job, config=CONFIG, eta=0))


@pytest.mark.parametrize("family", ["sd35"])
def test_arrays_are_what_save_image_takes(pipe, family, tmp_path):
    arrays = batch_sample(PROMPTS[:2], CONFIG, pipe=pipe)
    pictures = batch_sample(PROMPTS[:2], CONFIG, pipe=pipe, output_type="pil")
    for i, (array, picture) in enumerate(zip(arrays, pictures, strict=True)):
        path = save_image(array, tmp_path, "tiny", 0, i, PROMPTS[i])
        saved = np.asarray(Image.open(path)).astype(int)
        assert np.abs(saved - np.asarray(picture)).max() <= 1  # 2u − 1 rounds once more
        assert array.min() >= -1
        assert array.max() <= 1


@pytest.mark.parametrize("family", ["sd35"])
def test_drawn_seeds_are_told_and_give_the_images_again(pipe, family):
    heard = []
    config = replace(CONFIG, seed=None)
    images = batch_sample(PROMPTS[:3], config, 2, pipe=pipe, on_sample=heard.append)
    assert [sample.index for sample in heard] == [0, 1, 2]
    first = heard[0].seed
    assert [sample.seed for sample in heard] == [first, first + 1, first + 2]
    assert f"Seed: {first + 2}, Size: 48x32" in heard[2].parameters
    again = batch_sample(PROMPTS[:3], replace(config, seed=first), pipe=pipe)
    np.testing.assert_array_equal(images, again)


@pytest.mark.parametrize("family", ["sd35"])
def test_samples_come_one_by_one_and_complete(pipe, family, calls):
    some = samples(pipe, PROMPTS, 2, seed=0, height=32, width=32, num_inference_steps=1)
    assert calls == []
    sample = next(some)
    assert calls == [[0, 1]]
    assert sample.job == Job(
        PROMPTS[0],
        seed=0,
        guidance_scale=pipe.bundle.defaults.guidance_scale,
        height=32,
        width=32,
        num_inference_steps=1,
        sampler=pipe.bundle.defaults.sampler,
    )
    assert [sample.index for sample in some] == [1, 2, 3, 4, 5, 6]
    assert list(samples(pipe, [])) == []


@pytest.mark.parametrize("family", ["sd35"])
def test_a_bundle_of_a_least_batch_is_filled_up(pipe, family, calls, monkeypatch):
    expected = batch_sample(PROMPTS, CONFIG, pipe=pipe)
    monkeypatch.setattr(
        job_batches, "images_at_once", lambda _: eri.ShapeRange(min=2, opt=2, max=3)
    )
    calls.clear()
    images = batch_sample(PROMPTS, CONFIG, pipe=pipe)
    assert calls == [[5, 6, 7], [8, 9, 10], [11, 11]]
    np.testing.assert_array_equal(images, expected)


def test_seeds_count_from_the_first_and_around():
    jobs = assign_seeds([Job("a"), Job("b", seed=0), Job("c")], MAX_SEED)
    assert [job.seed for job in jobs] == [MAX_SEED, 0, 1]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_batches_hold_every_job_once_and_one_kind_each(kinds, size):
    made = group_into_batches(dict(enumerate(kinds)), size)
    assert sorted(index for each in made for index in each) == list(range(len(kinds)))
    left = list(range(len(kinds)))
    for each in made:  # the first that is left, with those of its kind that follow
        assert each == [i for i in left if kinds[i] == kinds[left[0]]][:size]
        left = [i for i in left if i not in each]


# what is refused


BAD = [
    ({"pipe": "engines/demo"}, UsageError, "^pipe: got 'engines/demo'.*eri_runtime.load"),
    ({"config": {}}, UsageError, "^config"),
    ({"prompts": []}, UsageError, "^prompts: got none"),
    ({"prompts": ["a", 1]}, UsageError, r"^prompts\[1\]: got 1"),
    ({"prompts": ["a", "\ud800"]}, UsageError, r"^prompts\[1\]: prompt: .*surrogates"),
    ({"batch_size": 0}, UsageError, "^batch_size: got 0"),
    ({"batch_size": 2.0}, UsageError, "^batch_size: got 2.0"),
    ({"batch_size": 999}, SizeError, r"^batch_size: got 999, expected 1 to \d+.*--batch"),
    ({"output_type": "np"}, UnknownNameError, "^output_type: got 'np', expected one of array, pil"),
    ({"num_images_per_prompt": 2}, UnknownNameError, "num_images_per_prompt"),
    ({"noise": lambda draw, shape: np.zeros(shape)}, UsageError, "^noise: .*know of no batches"),
    ({"noise": "pink"}, UnknownNameError, r"^jobs\[0\]: noise"),
    ({"loras": [{}, {}]}, UsageError, "^loras"),
    ({"sampler": "oiler"}, UnknownNameError, "oiler"),
    ({"prompts": ["a", Job("b", height=50)]}, SizeError, r"^jobs\[1\]: height: got 50"),
    ({"prompts": ["a", Job("b", sampler="ola")]}, UnknownNameError, r"^jobs\[1\]: sampler"),
    ({"prompts": ["a", Job("b", num_inference_steps=9999)]}, UsageError, r"^jobs\[1\]: num_inf"),
    ({"eta": 0.5}, UsageError, r"^jobs\[0\]: eta: got 0.5 with flow_euler"),
]


@pytest.mark.parametrize("family", ["sd35"])
@pytest.mark.parametrize(("changed", "error", "match"), BAD)
def test_a_bad_argument_is_refused_before_anything_is_drawn(
    pipe, family, calls, changed: Mapping, error, match
):
    words = {"pipe": pipe, "prompts": PROMPTS, "config": CONFIG, **changed}
    with pytest.raises(error, match=match):
        batch_sample(**words)
    assert calls == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("negative_prompt", 1),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("seed", True),
        ("guidance_scale", float("nan")),
        ("true_cfg_scale", -1.0),
        ("height", 0),
        ("num_inference_steps", 1.5),
        ("sampler", 3),
    ],
)
def test_a_job_is_checked_when_it_is_made(field, value):
    with pytest.raises(UsageError, match=f"^{field}: got "):
        Job(**{"prompt": "a", field: value})


@pytest.mark.parametrize("family", ["sd35"])
def test_as_many_as_the_bundle_takes_are_made_at_once(pipe, family, calls, caplog):
    most = images_at_once(pipe.bundle).max
    with caplog.at_level(logging.WARNING):
        batch_sample(["a"] * (most + 1), replace(CONFIG, seed=0), pipe=pipe)
    assert [len(seeds) for seeds in calls] == [most, 1]
    assert caplog.text == ""
