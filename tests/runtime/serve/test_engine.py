"""The engine on a real bundle, in a thread: events, bits, order, limits, deadlines, shutdown."""

from __future__ import annotations

import asyncio
import os
import random

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.errors import (
    BundleError,
    CancelledError,
    DeadlineError,
    OutOfMemoryError,
    OverloadedError,
    ServingError,
    SizeError,
    StoppingError,
    UnknownNameError,
    UsageError,
)
from eri_runtime.latents import images_at_once
from eri_runtime.pipeline import Pipeline
from eri_runtime.serve import Ended, Engine, EngineOptions, Limits, Observer, PictureRequest
from tests.support.serving import SIZE, asked, events, run

LONG = Limits(steps=1000)  # so that a request is still running when something happens
SAMPLERS = ("flow_euler", "flow_heun", "dpmpp_2m", "unipc", "lcm", "euler_a")


@pytest.fixture(scope="module")
def pipe(sd35_bundle):
    with eri.load(sd35_bundle, "cpu", threads=1) as opened:
        yield opened


class Told(Observer):
    """Remembers what an engine tells."""

    def __init__(self):
        self.steps, self.ends, self.reasons = [], [], []

    def stepped(self, step):
        self.steps.append(step)

    def ended(self, end):
        self.ends.append(end)

    def refused(self, reason):
        self.reasons.append(reason)


def pixels(pictures):
    return [np.asarray(each) for each in pictures.images]


def test_steps_previews_and_pictures_of_one_request(opened, pipe):
    async def main():
        async with opened() as engine:
            submission = engine.submit(asked(previews=2, num_inference_steps=6, seed=3))
            steps, pictures = await events(submission)
            assert submission.ended
            assert engine.submissions == {}
            return steps, pictures, submission.request

    steps, pictures, request = run(main())
    assert sorted(each.step for each in steps) == [1, 2, 3, 4, 5, 6]
    assert {each.total for each in steps} == {6}
    shown = [each for each in steps if each.images]
    assert [each.step for each in shown] == [2, 4]
    assert shown[0].images[0].size == (32, 32)
    alone = pipe("a red heart", **SIZE, num_inference_steps=6, seed=3)
    np.testing.assert_array_equal(pixels(pictures), [np.asarray(each) for each in alone.images])
    assert tuple(pictures.seeds) == alone.seeds
    assert tuple(pictures.parameters) == alone.parameters
    assert request.model == "tiny"
    assert request.words["seed"] == [3]


def test_pictures_in_random_company_are_those_made_alone(opened, pipe):
    rng = random.Random(0)  # noqa: S311
    words = [
        {
            "prompt": rng.choice(["a red heart", "", "a cat", "a pizza on a plate"]),
            "num_inference_steps": rng.randint(1, 9),
            "sampler": rng.choice(SAMPLERS),
            "guidance_scale": rng.choice([1.0, 3.0, 7.5]),
            "seed": seed,
            "height": rng.choice([32, 48]),
            "width": 32,
            "num_images_per_prompt": rng.choice([1, 1, 2]),
        }
        for seed in range(24)
    ]

    async def later(engine, own):
        await asyncio.sleep(rng.random() / 2)
        return (await events(engine.submit(asked(**own))))[1]

    async def main():
        told = Told()
        async with opened() as engine:
            engine._observer = told
            return await asyncio.gather(*(later(engine, own) for own in words)), told

    found, told = run(main())
    assert max(each.requests for each in told.steps) > 1  # they did share calls
    for pictures, own in zip(found, words, strict=True):
        alone = pipe(**own)
        np.testing.assert_array_equal(pixels(pictures), [np.asarray(each) for each in alone.images])


def test_a_short_request_overtakes_a_long_one(opened):
    async def main():
        async with opened() as engine:
            long = engine.submit(asked(num_inference_steps=120, seed=0))
            await anext(aiter(long))
            await events(engine.submit(asked(num_inference_steps=2, seed=1)))
            return long.ended, long.progress

    ended, progress = run(main())
    assert not ended
    assert progress.step < 100


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (asked(height=33), SizeError, "height"),
        (asked(num_inference_steps=0), UsageError, "num_inference_steps"),
        (asked(sampler="magic"), UnknownNameError, "sampler"),
        (asked(unknown=1), UnknownNameError, "keyword"),
        (PictureRequest(model="other", prompt="a"), UnknownNameError, "model"),
        (asked(generator=3), UsageError, "generator: got it in a served request"),
        (asked(callback_on_step_end=print), UsageError, "callback_on_step_end"),
        (asked(loras={"none": 1.0}), UnknownNameError, "loras"),
        (asked(previews=-1), UsageError, "previews"),
        (asked(timeout=0), UsageError, "timeout"),
        (asked(timeout=float("nan")), UsageError, "timeout"),
        (asked(num_inference_steps=51), UsageError, "expected at most 50"),
        (asked(num_images_per_prompt=3), UsageError, "expected at most 2"),
        (asked("x" * 1001), UsageError, "expected at most 1000"),
        (asked(height=64, width=64), UsageError, "expected at most 3072"),
    ],
)
def test_what_is_refused_before_it_is_queued(opened, request_, error, message):
    limits = Limits(pixels=3072, steps=50, pictures=2, prompt=1000)

    async def main():
        told = Told()
        async with opened(limits=limits) as engine:
            engine._observer = told
            with pytest.raises(error, match=message):
                engine.submit(request_)
            assert engine.submissions == {}
            assert told.reasons == [error.__name__]
            return await events(engine.submit(asked(num_inference_steps=1)))

    assert run(main())[1].images


def test_a_request_without_enough_memory_is_refused(opened, monkeypatch):
    from eri_runtime.memory import AvailableMemory
    from eri_runtime.serve import admission

    none = AvailableMemory(bytes=1000, limit="memory of the machine")
    monkeypatch.setattr(admission, "available_memory", lambda: none)

    async def main():
        async with opened() as engine:
            with pytest.raises(OutOfMemoryError, match=r"request: got about \d+ MiB needed"):
                engine.submit(asked())

    run(main())


def test_over_the_queue_requests_are_refused_with_a_time(opened):
    async def main():
        async with opened(queue=3) as engine:
            accepted = [engine.submit(asked(num_inference_steps=8, seed=i)) for i in range(3)]
            with pytest.raises(OverloadedError, match="queue: got 3 requests already") as caught:
                engine.submit(asked())
            assert caught.value.retry_after > 0
            assert engine.status.waiting + engine.status.running == 3
            await asyncio.gather(*(events(each) for each in accepted))
            await events(engine.submit(asked(num_inference_steps=1)))

    run(main())


def test_one_that_is_cancelled_stops_and_the_others_go_on(opened):
    async def main():
        told = Told()
        async with opened() as engine:
            engine._observer = told
            doomed = engine.submit(asked(num_inference_steps=100, seed=0))
            other = engine.submit(asked(num_inference_steps=10, seed=1))
            await anext(aiter(doomed))
            doomed.cancel()
            doomed.cancel()
            with pytest.raises(CancelledError):
                await events(doomed)
            await events(other)
            made = sum(each.requests for each in told.steps)
            doomed.cancel()
            return made, [each.outcome for each in told.ends]

    made, outcomes = run(main())
    assert made < 60
    assert sorted(outcomes) == ["cancelled", "finished"]  # the short one may be done before


def test_a_deadline_ends_a_request(opened):
    async def main():
        async with opened(limits=LONG) as engine:
            late = engine.submit(asked(num_inference_steps=900, seed=0, timeout=0.1))
            with pytest.raises(DeadlineError, match=r"no pictures after 0\.1 s"):
                await events(late)
            assert engine.submissions == {}

    run(main())


def test_a_shutdown_finishes_what_it_can(opened):
    async def main():
        async with opened(limits=LONG) as engine:
            short = engine.submit(asked(num_inference_steps=2))
            long = engine.submit(asked(num_inference_steps=900))
            drained = asyncio.create_task(engine.drain(1.0))
            await asyncio.sleep(0)
            assert engine.status.stopping
            assert not engine.status.ready
            with pytest.raises(StoppingError):
                engine.submit(asked())
            await events(short)
            with pytest.raises(StoppingError):
                await events(long)
            await drained

    run(main())


def test_a_request_that_fails_in_the_engine_takes_no_other_along(opened, monkeypatch):
    step, failing = Pipeline.step, "fails"

    def some_fail(self, generations):
        if any(str(each.request.prompts[0]) == failing for each in generations):
            raise RuntimeError("a kernel")
        return step(self, generations)

    monkeypatch.setattr(Pipeline, "step", some_fail)

    async def main():
        async with opened() as engine:
            good = [engine.submit(asked(num_inference_steps=5, seed=i)) for i in range(3)]
            bad = engine.submit(asked(failing, num_inference_steps=5))
            with pytest.raises(ServingError, match="RuntimeError: a kernel"):
                await events(bad)
            return await asyncio.gather(*(events(each) for each in good))

    assert all(pictures.images for _, pictures in run(main()))


def test_what_is_told_of_a_request(opened):
    async def main():
        told = Told()
        async with opened() as engine:
            engine._observer = told
            await events(engine.submit(asked(previews=1, num_inference_steps=4, seed=0)))
            return told

    told = run(main())
    assert len(told.steps) == 4
    assert {(each.model, each.width, each.height, each.rows) for each in told.steps} == {
        ("tiny", 32, 32, 2)
    }
    (end,) = told.ends
    assert isinstance(end, Ended)
    assert end.outcome == "finished"
    assert end.pictures == 1
    assert 0 <= end.waited <= end.first_preview <= end.seconds


def test_an_engine_needs_a_bundle(tmp_path):
    with pytest.raises(UsageError, match="bundles: got none"):
        Engine({})
    with pytest.raises(BundleError):
        Engine({"none": tmp_path})


def test_more_pictures_than_a_call_makes_come_in_parts(opened, pipe):
    """One more than twice as many are three parts, and look like one request."""
    count = 2 * images_at_once(pipe.bundle).max + 1
    limits = Limits(pictures=count)

    async def main():
        async with opened(limits=limits) as engine:
            words = {"num_inference_steps": 4, "num_images_per_prompt": count, "seed": 5}
            submission = engine.submit(asked(previews=1, **words))
            assert len(engine.submissions) == 3
            steps, pictures = await events(submission)
            assert submission.ended
            return steps, pictures

    steps, pictures = run(main())
    assert sorted({each.step for each in steps}) == [1, 2, 3, 4]
    (shown,) = [each for each in steps if each.images]
    assert len(shown.images) == count
    assert tuple(pictures.seeds) == tuple(range(5, 5 + count))
    for number, image in enumerate(pixels(pictures)):
        alone = pipe("a red heart", **SIZE, num_inference_steps=4, seed=5 + number).images[0]
        np.testing.assert_array_equal(image, np.asarray(alone))


def test_parts_are_accepted_together_or_not_at_all(opened, pipe):
    most = images_at_once(pipe.bundle).max
    limits = Limits(pictures=3 * most)

    async def main():
        async with opened(queue=2, limits=limits) as engine:
            with pytest.raises(OverloadedError):
                engine.submit(asked(num_images_per_prompt=3 * most))
            assert engine.submissions == {}
            joint = engine.submit(asked(num_images_per_prompt=2 * most, num_inference_steps=150))
            assert len(engine.submissions) == 2
            joint.cancel()
            with pytest.raises(CancelledError):
                await joint.pictures()
            assert engine.submissions == {}

    run(main())


def test_a_start_that_is_cancelled_leaves_no_worker(sd35_bundle):
    async def main():
        engine = Engine({"tiny": sd35_bundle}, EngineOptions(backend="cpu", workers=1))
        starting = asyncio.create_task(engine.start())
        await asyncio.sleep(0.05)
        pid = engine._workers.seats[0].link.pid
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        return pid

    with pytest.raises(ProcessLookupError):
        os.kill(run(main()), 0)
