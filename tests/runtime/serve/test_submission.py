"""What a client reads of a request, whoever reads it and however late."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from PIL import Image

from eri_runtime.errors import DeadlineError, ServingError
from eri_runtime.serve import PictureRequest, Pictures, Progress
from eri_runtime.serve.parts import JointSubmission
from eri_runtime.serve.submission import MOST_UNREAD, HeldSubmission
from tests.support.serving import events, run

PICTURES = Pictures(images=(), seeds=(), parameters=())


def held():
    return HeldSubmission(PictureRequest(), SimpleNamespace(steps=9, batch=1), lambda _: None)


def preview(step):
    return Progress(step=step, total=40, images=(Image.new("RGB", (1024, 1024)),))


def test_all_who_read_a_request_are_told_of_its_end():
    async def main():
        submission = held()
        both = [asyncio.create_task(submission.pictures()) for _ in range(2)]
        await asyncio.sleep(0)
        submission.end("finished", PICTURES)
        return await asyncio.gather(*both, return_exceptions=True)

    first, second = run(main())
    assert first is PICTURES
    assert isinstance(second, ServingError)


def test_all_who_read_a_request_are_told_of_its_failure():
    async def main():
        submission = held()
        both = [asyncio.create_task(submission.pictures()) for _ in range(2)]
        await asyncio.sleep(0)
        submission.end("late", DeadlineError("request", got="nothing", expected="pictures"))
        for each in (*both, submission.pictures()):
            with pytest.raises(DeadlineError):
                await each

    run(main())


def unread(submission):
    """Bytes of previews among the events of a request."""
    return sum(len(each.tobytes()) for event in submission for each in event.images)


def test_previews_that_nobody_reads_are_limited():
    async def main():
        submission = held()
        for step in range(1, 41):
            submission.progressed(preview(step))
        submission.end("finished", PICTURES)
        return (await events(submission))[0]

    steps = run(main())
    assert [each.step for each in steps] == list(range(1, 41))
    assert 0 < unread(steps) <= MOST_UNREAD


def test_previews_of_parts_that_nobody_reads_are_limited():
    async def main():
        parts = [held(), held()]
        joint = aiter(JointSubmission(PictureRequest(), parts))
        for part in parts:
            part.progressed(Progress(step=1, total=40))
        await anext(joint)
        for step in range(2, 41):
            for part in parts:
                part.progressed(preview(step))
            await asyncio.sleep(0)
        for part in parts:
            part.end("finished", PICTURES)
        return [each async for each in joint][:-1]

    steps = run(main())
    shown = [each for each in steps if each.images]
    assert {len(each.images) for each in shown} == {2}
    assert 0 < unread(steps) <= 2 * MOST_UNREAD + 10 * 2**20
