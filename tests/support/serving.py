"""Requests for a tiny bundle, and what comes of them."""

from __future__ import annotations

import asyncio

from eri_runtime.serve import PictureRequest, Pictures, Progress

SIZE = {"height": 32, "width": 32}


def asked(prompt="a red heart", previews=0, loras=None, timeout=None, **words):
    """A request for small pictures."""
    return PictureRequest(
        prompt=prompt,
        words={**SIZE, **words},
        previews=previews,
        loras=loras or {},
        timeout=timeout,
    )


async def events(submission):
    """All events of a request: its steps, and its pictures."""
    found = [event async for event in submission]
    assert isinstance(found[-1], Pictures)
    assert all(isinstance(each, Progress) for each in found[:-1])
    return found[:-1], found[-1]


def run(coroutine):
    """Runs a test's coroutine for at most two minutes."""
    return asyncio.run(asyncio.wait_for(coroutine, 120))
