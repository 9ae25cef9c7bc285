"""What passes between an engine and its workers, and what happens when it cannot."""

from __future__ import annotations

import os
import pickle
import signal
from multiprocessing.connection import Connection
from time import monotonic

import pytest
from PIL import Image

from eri_runtime import errors
from eri_runtime.errors import EriError, UsageError
from eri_runtime.serve import supervisor
from eri_runtime.serve.links import ProcessLink
from tests.support.serving import asked, events, run

ERRORS = [each for each in vars(errors).values() if isinstance(each, type)]


@pytest.mark.parametrize("kind", [each for each in ERRORS if issubclass(each, EriError)])
def test_every_error_can_pass_from_one_process_to_another(kind):
    error = kind("request", got="much", expected="less", fix="ask for less")
    error.needed = 7
    found = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(found) is kind
    assert str(found) == str(error)
    assert vars(found) == vars(error)


def test_a_worker_that_cannot_be_understood_is_started_anew(opened, monkeypatch):
    receive, calls = Connection.recv, []

    def recv(self):
        message = receive(self)
        calls.append(message)
        if len(calls) == 3:
            raise TypeError("nobody can read that")
        return message

    monkeypatch.setattr(Connection, "recv", recv)

    async def main():
        async with opened(workers=1) as engine:
            _, pictures = await events(engine.submit(asked(num_inference_steps=4)))
            return engine.status.restarts, pictures

    restarts, pictures = run(main())
    assert restarts == 1
    assert pictures.images


def test_a_worker_that_hangs_does_not_keep_the_engine_waiting(opened):
    image = Image.effect_noise((512, 512), 50).convert("RGB")  # more than a socket holds

    async def main():
        async with opened(workers=1, heartbeat=20.0) as engine:
            link = engine._workers.seats[0].link
            os.kill(link.pid, signal.SIGSTOP)
            started = monotonic()
            held = [engine.submit(asked(image=image)) for _ in range(4)]
            assert monotonic() - started < 15
            link.kill()
            for each in held:
                await events(each)

    run(main())


def test_a_request_that_cannot_be_pickled_fails_alone(opened):
    async def main():
        async with opened(workers=1) as engine:
            odd = engine.submit(asked(hook=lambda x: x))
            other = engine.submit(asked(num_inference_steps=2))
            with pytest.raises(UsageError, match="can be pickled"):
                await events(odd)
            await events(other)
            assert engine.submissions == {}

    run(main())


def test_a_worker_that_cannot_be_started_anew_is_tried_again(opened, monkeypatch):
    tries = []

    def start(*arguments):
        tries.append(arguments)
        if len(tries) == 2:
            raise BlockingIOError("no more processes")
        return ProcessLink(*arguments)

    monkeypatch.setattr(supervisor, "ProcessLink", start)

    async def main():
        async with opened(workers=1) as engine:
            os.kill(engine._workers.seats[0].link.pid, signal.SIGKILL)
            await events(engine.submit(asked(num_inference_steps=2)))
            return engine.status.restarts

    assert run(main()) == 2
    assert len(tries) == 3
