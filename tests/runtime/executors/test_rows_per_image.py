"""Images of one call that differ in everything: each is what it is alone, to the bit on the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.errors import BackendError, UsageError
from eri_runtime.executors import CPU, Layout, Row, Settings, even_layout
from tests.support import mixed_images
from tests.support.mixed_images import draw, layout_of, run
from tests.support.shared_row import old_bundle

FAMILIES = ["sdxl", "sd35", "flux"]
COUNTS = (2, 1, 3, 1, 2)  # conditions of each image


def opened(root, **settings):
    """The open step graph of a bundle, and the denoiser's entry."""
    bundle = eri.read_bundle(root)
    spec = bundle.components["denoiser"]
    return CPU.stepper(bundle.path(spec.step), spec, Settings(**settings)), spec


@pytest.fixture(scope="module", params=FAMILIES)
def step(request):
    stepper, spec = opened(request.getfixturevalue(f"{request.param}_bundle"))
    with stepper:
        yield stepper, spec


@pytest.mark.parametrize("seed", range(4))
def test_an_image_in_company_is_what_it_is_alone(step, seed):
    stepper, spec = step
    images, shared = draw(spec, np.random.default_rng(seed).permutation(COUNTS), seed)
    together = run(stepper, images, shared, steps=3)
    for b, image in enumerate(images):
        for mine, alone in zip(together, run(stepper, [image], shared, steps=3), strict=True):
            np.testing.assert_array_equal(mine.x[b], alone.x[0])
            np.testing.assert_array_equal(mine.denoised[b], alone.denoised[0])
            for memory, expected in zip(mine.remembered, alone.remembered, strict=True):
                np.testing.assert_array_equal(memory[b], expected[0])


def test_with_weights_left_in_their_file_calls_of_two_rows_or_more_are_alike(sd35_bundle):
    """Of a single row ONNX Runtime multiplies unpacked weights in another order."""
    stepper, spec = opened(sd35_bundle, low_memory=True)
    with stepper:
        images, shared = draw(spec, COUNTS)
        (together,) = run(stepper, images, shared)
        for b, image in enumerate(images):
            (alone,) = run(stepper, [image], shared)
            if len(image.mix) > 1:
                np.testing.assert_array_equal(together.x[b], alone.x[0])
            else:
                np.testing.assert_allclose(together.x[b], alone.x[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["x", "history", "noise", "row", "mix", "conditions"])
@pytest.mark.parametrize("bad", [1, 2])
def test_what_is_not_finite_reaches_no_other_image(step, part, bad):
    stepper, spec = step
    images, shared = draw(spec, COUNTS)
    (fine,) = run(stepper, images, shared)
    assert fine.finite
    assert fine.finite_images.tolist() == [True] * len(COUNTS)
    value = getattr(images[bad], part)
    for array in value.values() if part == "conditions" else [value]:
        array.flat[-1 if part in ("row", "mix") else 0] = np.nan
    (state,) = run(stepper, images, shared)
    assert not state.finite
    expected = [b != bad for b in range(len(COUNTS))]
    assert state.finite_images.tolist() == expected
    np.testing.assert_array_equal(state.x[expected], fine.x[expected])
    np.testing.assert_array_equal(state.denoised[expected], fine.denoised[expected])


def test_large_numbers_are_finite_although_their_sum_is_not(step):
    stepper, spec = step
    images, shared = draw(spec, (1, 1))
    images[0].row[:] = 0
    images[0].row[6] = 1  # x' = A·x
    images[0].x.fill(3e38)
    (state,) = run(stepper, images, shared)
    assert not state.finite
    assert state.finite_images.tolist() == [True, True]


def test_one_row_for_all_is_that_row_for_each(step):
    stepper, spec = step
    images, shared = draw(spec, (2, 2))
    images[1].row = images[0].row
    (expected,) = run(stepper, images, shared)
    layout, mix = layout_of(images)
    names = images[0].conditions
    conditions = {n: np.concatenate([each.conditions[n] for each in images]) for n in names}
    x = np.concatenate([each.x for each in images])
    loop = stepper.loop(x.shape, 4)
    loop.bind("all", mix, {**conditions, **shared}, layout)
    noise = tuple(np.concatenate([each.noise for each in images], axis=1))
    history = tuple(np.concatenate([each.history for each in images], axis=1))
    (state,) = loop.run([Row("all", images[0].row, noise)], loop.begin(x, history))
    np.testing.assert_array_equal(state.x, expected.x)


# older bundles


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory):
    """A bundle, and the same one as it was exported before."""
    root = request.getfixturevalue(f"{request.param}_bundle")
    return root, old_bundle(root, tmp_path_factory.mktemp("old") / "bundle").root


@pytest.mark.parametrize("sampler", ["default", "multistep"])
def test_an_older_bundle_runs_as_before(both, sampler):
    words = {"num_inference_steps": 4, "output_type": "latent", "seed": 5, "height": 32}
    words |= {"width": 48, "num_images_per_prompt": 2, "negative_prompt": "blurry"}
    trajectories = []
    for root in both:
        with eri.load(root, "cpu", loop="step") as pipe:
            flow = pipe.bundle.schedule.kind == "flow"
            name = "flow_euler" if flow else "euler"
            scale = "true_cfg_scale" if pipe.bundle.family == "flux" else "guidance_scale"
            chosen = name if sampler == "default" else "dpmpp_sde"
            request = pipe.request("a red heart", **words, **{scale: [2.0, 5.0]}, sampler=chosen)
            trajectories.append([(s.x, s.denoised) for s in pipe.denoise(request)])
    new, old = trajectories
    np.testing.assert_array_equal(new, old)


def test_an_older_bundle_refuses_what_it_cannot_run(both):
    stepper, spec = opened(both[1])
    with stepper:
        images, shared = draw(spec, (2, 2))
        with pytest.raises(UsageError, match="got another number, expected as many conditions"):
            run(stepper, images, shared)  # its rows lie image by image
        even = even_layout(1, 2)
        loop = stepper.loop((2, *images[0].x.shape[1:]), 1)
        conditions = images[0].conditions
        loop.bind("all", np.ones((1, 2), np.float32), {**conditions, **shared}, even)
        x = np.concatenate([each.x for each in images])
        rows = np.stack([each.row for each in images])
        with pytest.raises(UsageError, match="rows that differ, expected one row for all"):
            next(loop.run([Row("all", rows, ())], loop.begin(x, ())))
        rows[1] = rows[0]
        (same,) = loop.run([Row("all", rows, ())], loop.begin(x, ()))
        (one,) = loop.run([Row("all", rows[0], ())], loop.begin(x, ()))
        np.testing.assert_array_equal(same.x, one.x)
        x[1].flat[0] = np.nan
        (state,) = loop.run([Row("all", rows, ())], loop.begin(x, ()))
        assert state.finite_images.tolist() == [True, False]


@pytest.mark.parametrize("older", [False, True])
def test_a_manifest_that_names_the_other_form_is_an_error(both, older):
    """As someone might write it by hand."""
    bundle = eri.read_bundle(both[older])
    spec = replace(bundle.components["denoiser"], step_per_image=older)
    with CPU.stepper(bundle.path(spec.step), spec, Settings()) as stepper:
        images, shared = draw(spec, (1,))
        with pytest.raises(BackendError):
            run(stepper, images, shared)


# what a layout may be


BAD = {
    "another image's row": ({"index": [[0, 0], [1, 1]]}, "a row of another image"),
    "no such row": ({"index": [[0, 2], [1, 3]]}, "got 0 to 3, expected 0 to 2"),
    "a row before the first": ({"index": [[0, 2], [-2, 2]]}, "got -2 to 2, expected 0 to 2"),
    "no such image": ({"owner": [0, 0, 2]}, "got 0 to 2, expected 0 to 1"),
    "owners in a square": ({"owner": [[0], [0], [1]]}, r"got int64 of \(3, 1\), expected int64"),
    "too few conditions": ({"index": [[0, 2]]}, r"got int64 of \(1, 2\), expected int64 of \(2"),
    "another type": ({"dtype": np.int32}, "got int32 of"),
}


@pytest.mark.parametrize("words, reason", BAD.values(), ids=BAD)  # noqa: PT006
def test_a_layout_that_does_not_fit_is_refused(sd35_bundle, words, reason):
    dtype = words.get("dtype", np.int64)
    right = {"owner": [0, 0, 1], "index": [[0, 2], [1, 2]]}
    arrays = {name: np.array(words.get(name, right[name]), dtype) for name in right}
    stepper, spec = opened(sd35_bundle)
    with stepper:
        images, _ = draw(spec, (2, 1))
        loop = stepper.loop((2, *images[0].x.shape[1:]), 1)
        with pytest.raises(UsageError, match=reason):
            loop.bind("all", np.ones((2, 2), np.float32), {}, Layout(**arrays))


@pytest.mark.parametrize("shape", [(12,), (3, mixed_images.WIDTH), (2, 12), (2, 2, 13), ()])
def test_rows_of_another_shape_are_refused(sd35_bundle, shape):
    stepper, spec = opened(sd35_bundle)
    with stepper:
        images, shared = draw(spec, (1, 1))
        images[0] = replace(images[0])
        x = np.concatenate([each.x for each in images])
        loop = stepper.loop(x.shape, 1)
        names = images[0].conditions
        conditions = {n: np.concatenate([each.conditions[n] for each in images]) for n in names}
        loop.bind("all", np.ones((1, 2), np.float32), {**conditions, **shared})
        with pytest.raises(UsageError, match="expected 13 numbers, or 13 for each of 2 images"):
            next(loop.run([Row("all", np.zeros(shape, np.float32), ())], loop.begin(x, ())))
