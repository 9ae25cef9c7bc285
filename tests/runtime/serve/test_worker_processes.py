"""Workers that are killed, hang or cannot start: no accepted request is lost."""

from __future__ import annotations

import asyncio
import os
import signal

import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.errors import BackendError, StoppingError, WorkerLostError
from eri_runtime.serve import Engine, EngineOptions, supervisor
from eri_runtime.serve.links import Link
from eri_runtime.serve.messages import Pictures
from eri_runtime.serve.protocol import Alive, Began, Happened, Run
from tests.support.serving import SIZE, asked, events, run


def pid(engine):
    return engine._workers.seats[0].link.pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_requests_begin_again_in_a_new_worker(opened, sd35_bundle, number):
    async def main():
        async with opened(workers=1, heartbeat=3.0) as engine:
            submissions = [engine.submit(asked(num_inference_steps=40, seed=i)) for i in range(3)]
            await anext(aiter(submissions[0]))
            first = pid(engine)
            os.kill(first, number)
            found = [(await events(each))[1] for each in submissions]
            assert engine.status.restarts == 1
            assert pid(engine) != first
            return found

    found = run(main())
    with eri.load(sd35_bundle, "cpu", threads=1) as pipe:
        for seed, pictures in enumerate(found):
            (alone,) = pipe("a red heart", **SIZE, num_inference_steps=40, seed=seed).images
            np.testing.assert_array_equal(np.asarray(pictures.images[0]), np.asarray(alone))


def test_no_process_is_left_after_the_end(opened):
    async def main():
        async with opened(workers=2) as engine:
            held = engine.submit(asked(num_inference_steps=100))
            await anext(aiter(held))
            pids = [seat.link.pid for seat in engine._workers.seats]
        with pytest.raises(StoppingError):
            await events(held)
        return pids

    for each in run(main()):
        with pytest.raises(ProcessLookupError):
            os.kill(each, 0)


class FakeLink(Link):
    """A worker that dies of some prompts, and makes pictures of all others after a while."""

    deadly = frozenset({"poison"})

    def __init__(self, paths, options, hear, gone):
        self.hear, self.gone, self.dead = hear, gone, False
        self.loop = asyncio.get_running_loop()
        self.held = []
        self.loop.call_soon(self.start)

    def start(self):
        self.hear(Alive())

    def send(self, message):
        if isinstance(message, Run) and not self.dead:
            self.held.append(message)
            self.hear(Began(message.id))
            self.loop.call_later(0.05, self.advance, message)

    def advance(self, message):
        if self.dead or message not in self.held:
            return
        if message.request.prompt in self.deadly:
            self.dead = True
            self.gone()
            return
        self.held.remove(message)
        self.hear(Happened(message.id, Pictures(images=(), seeds=(), parameters=())))

    def kill(self):
        self.dead = True
        self.gone()

    def close(self):
        self.dead = True


@pytest.fixture
def faked(monkeypatch, sd35_bundle):
    monkeypatch.setattr(supervisor, "ProcessLink", FakeLink)
    return lambda **words: Engine({"tiny": sd35_bundle}, EngineOptions(backend="cpu", **words))


def test_a_request_that_kills_its_workers_takes_no_other_along(faked):
    async def main():
        async with faked(attempts=3) as engine:
            good = [engine.submit(asked(seed=i)) for i in range(5)]
            bad = engine.submit(asked("poison"))
            late = [engine.submit(asked(seed=i)) for i in range(5)]
            with pytest.raises(WorkerLostError, match="3 workers that died or hung under it"):
                await events(bad)
            for each in (*good, *late):
                await events(each)
            return engine.status.restarts

    assert run(main()) == 3


def test_a_worker_that_cannot_start_is_an_error(monkeypatch, sd35_bundle):
    class Dying(FakeLink):
        def start(self):
            self.gone()

    monkeypatch.setattr(supervisor, "ProcessLink", Dying)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.0)

    async def main():
        async with Engine({"tiny": sd35_bundle}, EngineOptions(backend="cpu")):
            pytest.fail("it started")

    with pytest.raises(WorkerLostError, match="workers that died as they started"):
        run(main())


def test_a_backend_that_cannot_run_the_bundle_is_said_at_the_start(opened):
    async def main():
        async with opened(workers=1, backend="tensorrt"):
            pytest.fail("it started")

    with pytest.raises(BackendError, match="tensorrt"):
        run(main())
