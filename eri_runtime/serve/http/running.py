"""Waits for an accepted request, and cancels it as soon as its client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from math import inf

from fastapi import Request

from eri_runtime.checks import real
from eri_runtime.errors import UsageError, short
from eri_runtime.serve.messages import Event, Pictures
from eri_runtime.serve.submission import Submission

TIMEOUT = "x-request-timeout"
POSITIVE = "seconds, more than 0"


async def finish(request: Request, submission: Submission) -> Pictures:
    """Returns the pictures of a request.

    Cancels it when the client disconnects, and when the task that waits here is cancelled.

    Args:
        request: The HTTP request, whose body was read.
        submission: What `Engine.submit` returned.

    Raises:
        EriError: What the engine raises, `CancelledError` after a disconnect.
    """
    async with cancelled_on_disconnect(request, submission):
        return await submission.pictures()


async def events(request: Request, submission: Submission) -> AsyncGenerator[Event, None]:
    """Yields the events of a request, as `finish` waits for them; raises what it raises."""
    async with cancelled_on_disconnect(request, submission):
        async for event in submission:
            yield event


@asynccontextmanager
async def cancelled_on_disconnect(request: Request, submission: Submission) -> AsyncIterator[None]:
    """Cancels a submission when the client disconnects, or the block ends before the request."""
    watch = asyncio.create_task(_cancel_on_disconnect(request, submission))
    try:
        yield
    finally:
        submission.cancel()  # does nothing if it has ended
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch


async def _cancel_on_disconnect(request: Request, submission: Submission) -> None:
    """Waits until the client disconnects, then cancels its request."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    submission.cancel()


def timeout_of(request: Request) -> float | None:
    """Returns the seconds in the header `X-Request-Timeout`, or None without one.

    Raises `UsageError` for anything but a positive number.
    """
    text = request.headers.get(TIMEOUT)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError as error:
        raise UsageError(TIMEOUT, got=short(text), expected=POSITIVE) from error
    return real(TIMEOUT, seconds, POSITIVE, lambda value: 0 < value < inf)
