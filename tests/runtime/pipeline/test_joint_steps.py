"""Steps of several requests in one call of the denoiser: each keeps the bits it has alone."""

from __future__ import annotations

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.errors import NonFiniteError, UsageError
from eri_runtime.pipeline.request_runner import RequestRunner

SIZE = {"height": 32, "width": 32}
SAMPLERS = {"sdxl": ("euler_a", "dpmpp_2m", "pndm"), "flow": ("flow_heun", "unipc", "lcm")}


@pytest.fixture(params=["sdxl", "sd35", "flux"], scope="module")
def pipe(request):
    bundle = request.getfixturevalue(f"{request.param}_bundle")
    with eri.load(bundle, "cpu", verify="never") as opened:
        yield opened


def requests(pipe):
    """Requests that differ in everything but size and the length of their text."""
    names = SAMPLERS["sdxl" if pipe.bundle.family == "sdxl" else "flow"]
    grey = np.full((32, 32, 3), 128, np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    return [
        {"prompt": "a red heart", "num_inference_steps": 4, "seed": 0},
        {"prompt": "", "num_inference_steps": 1, "seed": 1, "guidance_scale": 1.0},
        {"prompt": ["a cat", "a dog"], "seed": 2, "num_inference_steps": 3, "sampler": names[0]},
        {"prompt": {"a": 0.3, "b": 0.7}, "seed": 3, "num_inference_steps": 5, "sampler": names[1]},
        {"prompt": "c", "seed": 4, "num_inference_steps": 6, "sampler": names[2]},
        {
            "prompt": "d",
            "negative_prompt": "grey",
            "seed": 5,
            "num_inference_steps": 4,
            "image": grey,
            "mask": mask,
            "strength": 0.8,
            "guidance_rescale": 0.5,
            "true_cfg_scale": 2.0,
        },
        {"prompt": "e", "seed": 6, "num_inference_steps": 3, "hook": lambda x: np.clip(x, -1, 1)},
    ]


def run(pipe, generations):
    """Steps all of them together until the last is done; returns the number of calls."""
    calls, active = 0, list(generations)
    while active:
        for outcome in pipe.step(active):
            assert not isinstance(outcome, Exception), outcome
        calls, active = calls + 1, [each for each in active if not each.done]
    return calls


def test_each_has_the_bits_of_a_call_of_its_own(pipe):
    words = requests(pipe)
    begun = [pipe.begin(pipe.request(**each, **SIZE)) for each in words]
    assert len({each.group for each in begun}) == 1
    totals = [len(pipe.table(each.request)) for each in begun]
    assert run(pipe, begun) == max(totals)
    for each, own in zip(begun, words, strict=True):
        alone = pipe(**own, **SIZE, output_type="latent").latents
        np.testing.assert_array_equal(each.last.x, alone)


def test_one_that_joins_later_has_them_too(pipe):
    first, second = requests(pipe)[:2]
    early = pipe.begin(pipe.request(**first, **SIZE))
    pipe.step([early])
    late = pipe.begin(pipe.request(**second, **SIZE))
    run(pipe, [early, late])
    for each, own in ((early, first), (late, second)):
        alone = pipe(**own, **SIZE, output_type="latent").latents
        np.testing.assert_array_equal(each.last.x, alone)


def test_one_that_is_not_finite_fails_alone(pipe):
    words = requests(pipe)[0]
    bad = {**words, "hook": lambda x: x * np.float32("nan")}
    begun = [pipe.begin(pipe.request(**each, **SIZE)) for each in (words, bad, words)]
    first, failed, third = pipe.step(begun)
    assert isinstance(failed, NonFiniteError)
    assert "step 1 of 4" in str(failed)
    np.testing.assert_array_equal(first.x, third.x)
    run(pipe, [begun[0], begun[2]])
    alone = pipe(**words, **SIZE, output_type="latent").latents
    np.testing.assert_array_equal(begun[2].last.x, alone)


def test_after_an_error_of_the_engine_none_has_moved(pipe, monkeypatch):
    words = requests(pipe)[0]
    begun = [pipe.begin(pipe.request(**words, **SIZE)) for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(RequestRunner, "_run_held", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipe.step(begun)
    assert [each.last.index for each in begun] == [-1, -1]
    run(pipe, begun)
    alone = pipe(**words, **SIZE, output_type="latent").latents
    np.testing.assert_array_equal(begun[1].last.x, alone)


def test_what_cannot_be_taken_together_is_refused(pipe):
    words = requests(pipe)[1]
    small = pipe.begin(pipe.request(**words, **SIZE))
    large = pipe.begin(pipe.request(**words, height=48, width=32))
    assert small.group != large.group
    with pytest.raises(UsageError, match="requests in progress of one group"):
        pipe.step([small, large])
    run(pipe, [small])
    with pytest.raises(UsageError, match="requests in progress of one group"):
        pipe.step([small])
    with pytest.raises(UsageError, match="generations"):
        pipe.step(["no request"])
    assert pipe.step([]) == []
