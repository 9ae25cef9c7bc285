"""The loop belongs to the caller: stop it, break it, go on from any step of it, anywhere."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.errors import UsageError

# one of each shape of table: W earlier estimates and V noises are what a step must carry
RUNS = {
    "W1 V0": ("sd35", "flow_euler", {}),
    "W2 V0, two evaluations a step": ("sd35", "flow_heun", {}),
    "W2 V0": ("sdxl", "dpmpp_2m", {}),
    "W3 V1": ("sd35", "dpmpp_3m_sde", {}),
    "W2 V2": ("sdxl", "dpmpp_sde", {}),
    "W2 V2, one Brownian path": ("sd35", "dpmpp_sde", {"noise": "brownian"}),
    "W2 V2, Philox": ("sd35", "dpmpp_sde", {"noise": "philox"}),
    "W4 V0, corrected": ("sdxl", "unipc", {"sampler_options": {"order": 3}}),
    "W4 V0, slopes": ("sd35", "lms", {}),
    "churn": ("sdxl", "heun", {"sampler_options": {"s_churn": 2.0}}),
}
WORDS = {"height": 32, "width": 48, "num_inference_steps": 5, "output_type": "latent"}
PROMPTS = ["a red heart", "two black cats"]


@pytest.fixture(scope="module")
def opened(request):
    """A family -> its bundle, and a pipeline of it that all tests here share."""
    made = {}

    def of(family):
        if family not in made:
            made[family] = eri.load(request.getfixturevalue(f"{family}_bundle"))
        return made[family]

    yield of
    for pipe in made.values():
        pipe.close()


def asked(pipe, name, **other):
    """The request of a run: two images, with guidance."""
    _, sampler, words = RUNS[name]
    words = {**WORDS, "sampler": sampler, "seed": [3, 2**33], "guidance_scale": 4.0} | words
    return pipe.request(PROMPTS, **(words | other))


def assert_same(mine, theirs):
    """The same steps to the bit."""
    assert len(mine) == len(theirs) > 0
    for a, b in zip(mine, theirs, strict=True):
        assert (a.index, a.total, a.sigma, a.draw) == (b.index, b.total, b.sigma, b.draw)
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.denoised, b.denoised)


def test_the_runs_are_of_the_shapes_they_say(opened):
    for name, (family, *_) in RUNS.items():
        pipe = opened(family)
        table = pipe.table(asked(pipe, name))
        if name == "churn":
            assert table.C0 > 0
        else:
            widths = f"W{table.B.shape[1]} V{table.C.shape[1]}"
            assert name.startswith(widths), f"{name}: {widths}"


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_from_any_of_its_steps(opened, name):
    pipe = opened(RUNS[name][0])
    whole = list(pipe.denoise(asked(pipe, name)))
    for step in whole[:-1]:
        assert_same(list(pipe.denoise(asked(pipe, name), start=step)), whole[step.index + 1 :])
    assert list(pipe.denoise(asked(pipe, name), start=whole[-1])) == []


@pytest.mark.parametrize("name", RUNS)
def test_a_step_outlives_its_pipeline(opened, name):
    """Pickled in one pipeline, it goes on in another, and in the same one closed since."""
    first = opened(RUNS[name][0])
    whole = list(first.denoise(asked(first, name)))
    stored = pickle.dumps(whole[2])
    with eri.load(first.bundle.root) as other:
        rest = list(other.denoise(asked(other, name), start=pickle.loads(stored)))  # noqa: S301
    assert_same(rest, whole[3:])
    first.close()
    again = list(first.denoise(asked(first, name), start=pickle.loads(stored)))  # noqa: S301
    assert_same(again, whole[3:])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_cancelled_leaves_no_trace(opened, name):
    pipe = opened(RUNS[name][0])
    whole = list(pipe.denoise(asked(pipe, name)))
    for after in (1, 3):
        loop = pipe.denoise(asked(pipe, name, seed=77))
        for _ in range(after):
            next(loop)
        loop.close()
        assert_same(list(pipe.denoise(asked(pipe, name))), whole)


def test_two_loops_may_take_turns(opened):
    pipe = opened("sd35")
    names = "W2 V2, Philox", "W4 V0, slopes"
    alone = [list(pipe.denoise(asked(pipe, name))) for name in names]
    loops = [pipe.denoise(asked(pipe, name)) for name in names]
    turns = [[], []]
    for i in [0, 1] * max(map(len, alone)):
        turns[i] += [step for step in [next(loops[i], None)] if step is not None]
    for mine, theirs in zip(turns, alone, strict=True):
        assert_same(mine, theirs)


class StopError(Exception):
    """The caller's own."""


@pytest.mark.parametrize("family", ["sdxl", "sd35"])
def test_an_error_of_on_step_comes_through_and_the_pipeline_goes_on(opened, family):
    pipe, seen = opened(family), []
    words = {**WORDS, "seed": 5}

    def at_the_third(step):
        seen.append(step.index)
        if len(seen) == 3:
            raise StopError

    before = pipe("a red heart", **words)
    with pytest.raises(StopError):
        pipe("a red heart", on_step=at_the_third, **words)
    assert seen == [0, 1, 2]
    np.testing.assert_array_equal(pipe("a red heart", **words).latents, before.latents)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("W1 V0", {"num_inference_steps": 6}),
        ("W1 V0", {"height": 48}),
        ("W1 V0", {"seed": 3, "prompt_count": 1}),
        ("W1 V0", {"sigmas": "karras"}),
        ("W4 V0, slopes", {"sampler": "flow_euler"}),
        ("W1 V0", {"sampler": "dpmpp_2m"}),
        ("W3 V1", {"sampler": "euler_a"}),
    ],
)
def test_a_step_of_another_request_is_refused(opened, name, other):
    pipe = opened(RUNS[name][0])
    step = list(pipe.denoise(asked(pipe, name)))[2]
    prompts = PROMPTS[: other.pop("prompt_count", 2)]
    words = {**WORDS, "sampler": RUNS[name][1], "seed": [3, 2**33], "guidance_scale": 4.0}
    request = pipe.request(prompts, **(words | other))
    with pytest.raises(UsageError, match=r"start: got a step of .*, expected "):
        next(pipe.denoise(request, start=step))
