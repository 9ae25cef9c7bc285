"""A stand-in for the engine in a replica: it takes its time, and says in which process it ran."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

from eri_runtime.serve import Pictures
from tests.support.fake_engine import FakeEngine

STEP = 0.25  # seconds; a request of four steps takes one


class SlowEngine(FakeEngine):
    """Draws flat pictures, step by step; the end of `parameters` is its process.

    As in the real engine, a request goes on whoever waits for it, until it is cancelled.
    """

    def __init__(self, bundles, options, observer):
        super().__init__(tuple(bundles), options, observer)
        self.delay = STEP
        self._tasks = set()

    async def run(self, submission):
        events = asyncio.Queue()
        task = asyncio.create_task(self._draw(submission, events))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        while not isinstance(event := await events.get(), Pictures):
            if isinstance(event, Exception):
                raise event
            yield event
        texts = [f"{text}, Process: {os.getpid()}" for text in event.parameters]
        yield replace(event, parameters=texts)

    async def _draw(self, submission, events):
        try:
            async for event in super().run(submission):
                events.put_nowait(event)
        except Exception as error:
            events.put_nowait(error)
