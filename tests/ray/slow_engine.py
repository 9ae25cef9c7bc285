"""A stand-in for the engine in a replica: it takes its time, and says in which process it ran."""

from __future__ import annotations

import os
from dataclasses import replace

from eri_runtime.serve import Pictures
from tests.support.fake_engine import FakeEngine

STEP = 0.25  # seconds; a request of four steps takes one


class SlowEngine(FakeEngine):
    """Draws flat pictures, step by step; the end of `parameters` is its process."""

    def __init__(self, bundles, options, observer):
        super().__init__(tuple(bundles), options, observer)
        self.delay = STEP

    async def run(self, submission):
        async for event in super().run(submission):
            if isinstance(event, Pictures):
                texts = [f"{text}, Process: {os.getpid()}" for text in event.parameters]
                event = replace(event, parameters=texts)
            yield event
