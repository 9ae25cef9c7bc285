"""The step graph against the NumPy loop: whole trajectories, and what is kept of a loop."""

from __future__ import annotations

import logging
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from statistics import median

import numpy as np
import pytest

import eri_runtime as eri
from eri_export import export
from eri_export.choices.ranges import make_ranges
from eri_runtime import tabulate
from eri_runtime.bundle.spec import ShapeRange
from eri_runtime.errors import BackendError, NonFiniteError, UnknownNameError, UsageError
from eri_runtime.executors import choice
from eri_runtime.executors.ort.step_graph import OrtStepLoop
from eri_runtime.sampling import MAX_W
from eri_runtime.sampling.samplers import SAMPLERS
from tests.support.components import STATIC, only

FAMILIES = ["sdxl", "sd35", "flux"]
TOLERANCE = 1e-5
WORDS = {"height": 32, "width": 48, "num_inference_steps": 6, "output_type": "latent", "seed": 5}
PROMPT = "a red heart"


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """The NumPy loop and the step graph of one bundle."""
    bundle = request.getfixturevalue(f"{request.param}_bundle")
    with (
        eri.load(bundle, "cpu", loop="numpy") as numpy,
        eri.load(bundle, "cpu", loop="step") as step,
    ):
        yield numpy, step


@pytest.fixture(scope="module")
def pipe(sd35_bundle):
    """A step graph, and nothing else, of the family with the most samplers' conventions."""
    with eri.load(sd35_bundle, "cpu", loop="step", threads=1) as pipe:
        yield pipe


@pytest.fixture
def loops(monkeypatch):
    """Every loop that is begun."""
    made, begin = [], OrtStepLoop.__init__

    def noted(loop, *arguments, **options):
        made.append(loop)
        begin(loop, *arguments, **options)

    monkeypatch.setattr(OrtStepLoop, "__init__", noted)
    return made


def cfg(pipe, scale=4.0):
    """CFG in the family's own words."""
    if pipe.bundle.family == "flux":
        return {"negative_prompt": "blurry", "true_cfg_scale": scale, "guidance_scale": 3.5}
    return {"negative_prompt": "blurry", "guidance_scale": scale}


def trajectory(pipe, prompt=PROMPT, start=None, **words):
    return list(pipe.denoise(pipe.request(prompt, **WORDS | words), start))


def assert_same_trajectories(mine, reference, tolerance=TOLERANCE):
    assert len(mine) == len(reference) > 0
    for step, expected in zip(mine, reference, strict=True):
        assert (step.index, step.total, step.sigma) == (
            expected.index,
            expected.total,
            expected.sigma,
        )
        assert step.draw == expected.draw
        arrays = [(step.x, expected.x), (step.denoised, expected.denoised)]
        arrays += zip(step.remembered, expected.remembered, strict=True)
        arrays += zip(step.noises, expected.noises, strict=True)
        for array, oracle in arrays:
            assert array.dtype == np.float32
            assert array.shape == oracle.shape
            assert np.abs(array - oracle).max() <= tolerance * np.abs(oracle).max()


def compare(pair, prompt=PROMPT, **words):
    """The step graph's trajectory, once it is found to be NumPy's."""
    numpy, step = pair
    mine = trajectory(step, prompt, **words)
    assert_same_trajectories(mine, trajectory(numpy, prompt, **words))
    return mine


# the same trajectories


def fits(pipe, sampler):
    """Whether the sampler's history has room in a step graph."""
    request = pipe.request(PROMPT, **WORDS, sampler=sampler)
    return pipe.table(request).B.shape[1] <= MAX_W


def test_every_sampler(pair):
    kind, refused = pair[0].bundle.schedule.kind, []
    for name, sampler in SAMPLERS.items():
        if kind not in sampler.kinds:
            continue
        if fits(pair[0], name):
            compare(pair, sampler=name, **cfg(pair[0]))
        else:
            refused.append(name)
            with pytest.raises(UsageError, match="looks back over 5 evaluations, a step graph"):
                trajectory(pair[1], sampler=name)
    assert refused == (["pndm", "pndm_v"] if kind == "vp" else [])


def test_the_samplers_have_every_width(sdxl_bundle, sd35_bundle):
    for bundle in (sdxl_bundle, sd35_bundle):
        with eri.load(bundle) as pipe:
            kind = pipe.bundle.schedule.kind
            names = [name for name, sampler in SAMPLERS.items() if kind in sampler.kinds]
            names = [name for name in names if fits(pipe, name)]
            tables = [pipe.table(pipe.request(PROMPT, **WORDS, sampler=name)) for name in names]
        assert {table.B.shape[1] for table in tables} == {1, 2, 3, 4}
        assert {table.C.shape[1] for table in tables} == {0, 1, 2}


def test_all_columns_of_a_row_at_once(pair, monkeypatch):
    """A made-up rule with W 4 and V 2, which no sampler has together."""

    def rule(denoise, noise, x, schedule):
        past, drawn = [], []
        for here, there in schedule.steps():
            past, drawn = [denoise(x, here), *past][:4], [noise(), *drawn][:2]
            x = 0.8 * x + sum((0.1 / (j + 1) * m for j, m in enumerate(past[1:])), 0.1 * past[0])
            x = x + sum((0.2 / (j + 1) * there.sigma * n for j, n in enumerate(drawn)), 0.0 * x)
        return x

    for pipe in pair:
        schedule = pipe.schedule(pipe.request(PROMPT, **WORDS))
        table = tabulate(rule, schedule, pipe.bundle.schedule.prediction)
        assert (table.B.shape[1], table.C.shape[1]) == (4, 2)
        monkeypatch.setattr(pipe, "table", lambda request, table=table: table)
    compare(pair, **cfg(pair[0]))


@pytest.mark.parametrize(
    "words",
    [
        {"num_inference_steps": 1},
        {"num_images_per_prompt": 2},
        {"height": 48, "width": 80},
        {"prompt": ["a cat", "a dog"], "num_images_per_prompt": 2},
        {"prompt": {"a cat": 0.7, "a dog": 0.6}},
    ],
    ids=["one step", "two images", "another size", "two prompts", "prompts with weights"],
)
def test_every_size(pair, words):
    compare(pair, **cfg(pair[0]) | words)
    without = {"guidance_scale": 1.0} | words
    compare(pair, **without)


def test_a_scale_for_each_image(pair):
    many = compare(pair, num_images_per_prompt=3, **cfg(pair[0], [1.0, 3.0, 6.5]))
    alone = compare(pair, seed=7, **cfg(pair[0], 6.5))
    assert np.abs(many[-1].x[2] - alone[-1].x[0]).max() <= 1e-3 * np.abs(alone[-1].x).max()


def test_guidance_in_an_interval(pair, loops):
    numpy, step = pair
    levels = [each.sigma for each in trajectory(numpy)]
    interval = (levels[3] * 0.99, levels[1] * 1.01)
    some = compare(pair, guidance_interval=interval, **cfg(numpy))
    assert len(loops[0]._bound) == 2
    assert np.abs(some[-1].x - trajectory(step, **cfg(step))[-1].x).max() > 1e-4


def test_image_to_image(pair):
    image = np.random.default_rng(0).random((32, 48, 3)).astype(np.float32)
    edit = {"image": image, "strength": 0.6, "sampler": "euler_a"}
    assert 0 < len(compare(pair, **edit, **cfg(pair[0]))) < WORDS["num_inference_steps"]


def test_sixteen_bits(sd35_checkpoint, tmp_path):
    precision = {"*": "fp32", "denoiser": "fp16"}
    with only({"text_encoder", "text_encoder_2", "denoiser"}):
        bundle = export(sd35_checkpoint, tmp_path / "bundle", precision=precision, ranges=STATIC)
    with (
        eri.load(bundle.root, "cpu", loop="numpy") as numpy,
        eri.load(bundle.root, "cpu", loop="step") as step,
    ):
        compare((numpy, step), sampler="dpmpp_2m", **cfg(numpy))


def test_more_rows_than_there_are_conditions(pair):
    """A graph of a fixed batch is filled up: a condition more, without weight."""
    filled = []
    for pipe, loop in zip(pair, ("numpy", "step"), strict=True):
        denoiser = pipe.bundle.components["denoiser"]
        ranges = {**denoiser.ranges, "batch": ShapeRange(min=4, opt=4, max=4)}
        components = {**pipe.bundle.components, "denoiser": replace(denoiser, ranges=ranges)}
        bundle = replace(pipe.bundle, components=components)
        engine = choice.choose(bundle, "cpu")
        filled.append(eri.Pipeline(bundle, engine, engine.stepper, loop))
    compare(filled, guidance_scale=1.0)
    compare(filled, **cfg(pair[0]))
    for each in filled:
        each.close()


# what is kept of a loop


def test_a_step_that_is_kept_does_not_change(pair, loops):
    _, step = pair
    kept = trajectory(step, sampler="dpmpp_sde")
    request = step.request(PROMPT, **WORDS, sampler="dpmpp_sde")
    read = [(s.x, s.denoised, s.remembered) for s in step.denoise(request)]
    for late, at_once in zip(kept, read, strict=True):
        np.testing.assert_array_equal(late.x, at_once[0])
        np.testing.assert_array_equal(late.denoised, at_once[1])
        for one, other in zip(late.remembered, at_once[2], strict=True):
            np.testing.assert_array_equal(one, other)
    assert loops[0]._slots == len(kept)  # the first latents were let go of
    assert loops[1]._slots == 2


def test_what_was_read_of_a_step_outlives_it(pipe):
    steps = pipe.denoise(pipe.request(PROMPT, **WORDS))
    x = next(steps).x
    before = x.copy()
    for _ in steps:
        pass
    np.testing.assert_array_equal(x, before)


def test_two_trajectories_side_by_side(pipe):
    alone = [trajectory(pipe, seed=seed)[-1].x for seed in (1, 2)]
    both = [pipe.denoise(pipe.request(PROMPT, **WORDS | {"seed": seed})) for seed in (1, 2)]
    *_, last = zip(*both, strict=True)
    for step, x in zip(last, alone, strict=True):
        np.testing.assert_array_equal(step.x, x)


@pytest.mark.parametrize("sampler", ["dpmpp_sde", "lms"])
def test_a_loop_goes_on_from_any_step(pair, sampler):
    numpy, step = pair
    words = {"sampler": sampler, **cfg(numpy)}
    whole, oracle = trajectory(step, **words), trajectory(numpy, **words)
    for k in (0, 2, 4):
        again = trajectory(step, start=whole[k], **words)
        for one, other in zip(again, whole[k + 1 :], strict=True):
            np.testing.assert_array_equal(one.x, other.x)
        assert_same_trajectories(trajectory(step, start=oracle[k], **words), oracle[k + 1 :])
        assert_same_trajectories(trajectory(numpy, start=whole[k], **words), oracle[k + 1 :])


def test_a_loop_outlives_its_pipeline(sd35_bundle):
    with eri.load(sd35_bundle, "cpu", loop="step") as pipe:
        whole = trajectory(pipe)
        steps = pipe.denoise(pipe.request(PROMPT, **WORDS))
        next(steps)
        pipe.close()
        *_, last = steps
        np.testing.assert_array_equal(last.x, whole[-1].x)
        np.testing.assert_array_equal(trajectory(pipe)[-1].x, whole[-1].x)


def test_a_step_allocates_no_latents(pipe):
    request = pipe.request(
        PROMPT, **WORDS | {"num_images_per_prompt": 8, "num_inference_steps": 20}
    )
    sizes = []
    for step in pipe.denoise(request):
        if step.index == 5:
            tracemalloc.start()
        if step.index > 5:
            sizes.append(tracemalloc.get_traced_memory())
            tracemalloc.reset_peak()
    tracemalloc.stop()
    # medians: the whole process is counted, and an import or a cache elsewhere is no step
    growth = [after - before for (before, _), (after, _) in pairwise(sizes)]
    above = [peak - before for (before, _), (_, peak) in pairwise(sizes)]
    assert median(growth) < 1000
    assert median(above) < step.x.nbytes / 2


# what a step graph does not hold


def test_what_is_not_finite_names_the_step(pair):
    def noise(draw, shape):
        return np.full((1, *shape), np.inf if draw == 2 else 0.1, np.float32)

    for pipe in pair:
        with pytest.raises(NonFiniteError, match="latents after step 2 of 6: got NaN or Inf"):
            trajectory(pipe, sampler="euler_a", noise=noise)


def test_what_is_not_finite_names_the_image(pair):
    def noise(draw, shape):
        drawn = np.full((3, *shape), 0.1, np.float32)
        drawn[1] = np.nan if draw == 2 else 0.1
        return drawn

    for pipe in pair:
        with pytest.raises(NonFiniteError, match="latents of image 2 of 3 after step 2 of 6: got"):
            trajectory(pipe, sampler="euler_a", noise=noise, num_images_per_prompt=3)


UNHELD = {
    "hook": ({"hook": lambda denoised: denoised.clip(-1, 1)}, "changed between steps"),
    "thresholding": ({"dynamic_thresholding": (1.0, 0.9)}, "changed between steps"),
    "rescaling": ({"guidance_rescale": 0.5, "guidance_scale": 4.0}, "guidance is rescaled"),
    "history": (
        {"sampler": "sa_solver", "sampler_options": {"order": 4}, "num_inference_steps": 9},
        "the sampler looks back over 5 evaluations, a step graph over 4",
    ),
    "rows": ({"prompt": {f"text {i}": 0.1 for i in range(17)}}, "rows, and the denoiser takes 16"),
}


@pytest.mark.parametrize("words, reason", UNHELD.values(), ids=UNHELD)  # noqa: PT006
def test_numpy_runs_what_the_graph_does_not_hold(sd35_bundle, pipe, caplog, words, reason):
    words = {"guidance_scale": 1.0, "num_inference_steps": 2, **words}
    with eri.load(sd35_bundle, "cpu") as auto, eri.load(sd35_bundle, "cpu", loop="numpy") as numpy:
        with caplog.at_level(logging.DEBUG, "eri_runtime"):
            mine = trajectory(auto, **words)
        assert reason in caplog.text
        np.testing.assert_array_equal(mine[-1].x, trajectory(numpy, **words)[-1].x)
    with pytest.raises(UsageError, match=reason):
        trajectory(pipe, **words)


def test_a_bundle_without_a_step_graph(sd35_bundle, caplog):
    contents = eri.read_bundle(sd35_bundle)
    bare = replace(contents.components["denoiser"], step=None)
    contents = replace(contents, components={**contents.components, "denoiser": bare})
    engine = choice.choose(contents, "cpu")
    with eri.Pipeline(contents, engine, engine.stepper) as pipe:
        with caplog.at_level(logging.DEBUG, "eri_runtime"):
            assert len(trajectory(pipe)) == 6
        assert "no step graph in the bundle" in caplog.text
    only = eri.Pipeline(contents, engine, engine.stepper, "step")
    with only as pipe, pytest.raises(UsageError, match="no step graph in the bundle"):
        trajectory(pipe)


def test_an_unknown_loop_is_named(sd35_bundle):
    with pytest.raises(UnknownNameError, match="loop: got 'fast', expected one of auto"):
        eri.load(sd35_bundle, "cpu", loop="fast")


# how it is opened


def test_low_memory_gives_the_same(pair, request):
    numpy, _ = pair
    with eri.load(numpy.bundle.root, "cpu", loop="step", low_memory=True, threads=1) as low:
        compare((numpy, low), **cfg(numpy))


def test_cuda_is_refused_with_the_reason(sd35_bundle):
    if not choice.refusals(eri.read_bundle(sd35_bundle), "cuda"):
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match="backend cuda: got "):
        eri.load(sd35_bundle, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("static", [False, True], ids=["any size", "captured as a CUDA graph"])
def test_the_loop_on_cuda_is_numpys_on_the_cpu(pair, request, tmp_path, static):
    """`pytest -m gpu tests/runtime/loop` on a machine with onnxruntime-gpu and a GPU."""
    numpy, _ = pair
    root = numpy.bundle.root
    if reasons := choice.refusals(numpy.bundle, "cuda"):
        pytest.skip(reasons[0])
    if static:
        checkpoint = request.getfixturevalue(f"{numpy.bundle.family}_checkpoint")
        root = export(
            checkpoint, tmp_path / "static", ranges=make_ranges(size="48x32", static=True)
        ).root
    words = {"sampler": "dpmpp_sde", **cfg(numpy)}
    with eri.load(root, "cpu", loop="numpy") as cpu, eri.load(root, "cuda", loop="step") as cuda:
        mine = trajectory(cuda, **words)
        assert_same_trajectories(mine, trajectory(cpu, **words), tolerance=1e-3)
        for one, other in zip(mine, trajectory(cuda, **words), strict=True):
            np.testing.assert_array_equal(one.x, other.x)
