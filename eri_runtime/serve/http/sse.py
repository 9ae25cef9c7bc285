"""Server-sent events: frames, and a reply that streams them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any

from fastapi.responses import StreamingResponse

from eri_runtime.serve.http.errors import failure_of

FIRST_WAIT = 1.0  # seconds in which a failure still gets a status of its own
PING_AFTER = 15.0  # seconds without an event, after which proxies may close a connection
PING = b": ping\n\n"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}

Frames = AsyncGenerator[bytes, None]


def frame(kind: str, content: dict[str, Any]) -> bytes:
    """Returns one event as bytes."""
    data = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()


async def event_stream(frames: Frames) -> StreamingResponse:
    """Returns a reply that streams frames.

    Waits a second for the first: if making it fails, that error is raised here, so that the reply
    gets its status. A later error is sent as an event with OpenAI's error object.

    Args:
        frames: Yields frames; it is closed when the client disconnects.
    """
    first = asyncio.ensure_future(anext(frames))
    first.add_done_callback(_retrieve)
    try:
        await asyncio.wait({first}, timeout=FIRST_WAIT)
    except asyncio.CancelledError:
        first.cancel()
        raise
    if first.done():
        first.result()
    stream = _with_pings(first, frames)
    return StreamingResponse(stream, media_type="text/event-stream", headers=HEADERS)


def _retrieve(task: asyncio.Future[bytes]) -> None:
    """Looks at a task's exception, so that none is reported if nobody waits for it any more."""
    if not task.cancelled():
        task.exception()


async def _with_pings(first: asyncio.Future[bytes], frames: Frames) -> AsyncIterator[bytes]:
    """Yields frames, with a comment where none comes for long, and an error as the last frame."""
    pending = first
    try:
        while True:
            await asyncio.wait({pending}, timeout=PING_AFTER)
            if not pending.done():
                yield PING
                continue
            yield pending.result()
            pending = asyncio.ensure_future(anext(frames))
    except StopAsyncIteration:
        return
    except Exception as error:
        yield frame("error", failure_of(error).openai_body)
    finally:
        pending.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await pending
        await frames.aclose()
