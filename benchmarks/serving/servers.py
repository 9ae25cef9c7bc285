"""Three ways to serve requests with the same pipeline; each returns when every picture was ready.

`one_at_a_time` is the order of arrival, as AUTOMATIC1111's API and stable-diffusion.cpp's server
have it. `in_windows` collects equal requests for half a second into batches of four, as
Aquiles-Image does. `by_the_step` is our engine.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import eri_runtime as eri
from benchmarks.serving.load import Arrival
from eri_runtime.serve import Engine, EngineOptions, PictureRequest, Pictures, Progress

WINDOW, MOST = 0.5, 4  # Aquiles-Image's: seconds, and pictures per batch


@dataclass
class Served:
    """What became of a request: seconds from its arrival."""

    arrival: Arrival
    preview: float = float("nan")
    done: float = float("nan")


Serve = Callable[[Path, str, Sequence[Arrival]], list[Served]]


def one_at_a_time(bundle: Path, backend: str, load: Sequence[Arrival]) -> list[Served]:
    """Serves requests in the order of arrival."""
    return _collected(bundle, backend, load, window=0.0)


def in_windows(bundle: Path, backend: str, load: Sequence[Arrival]) -> list[Served]:
    """Collects equal requests in a window and makes their pictures as one batch."""
    return _collected(bundle, backend, load, window=WINDOW)


def _collected(bundle: Path, backend: str, load: Sequence[Arrival], window: float) -> list[Served]:
    served = [Served(each) for each in load]
    waiting: queue.Queue[Served] = queue.Queue()
    with eri.load(bundle, backend) as pipe:
        for count in range(1, 1 + (MOST if window else 1)):
            for each in _rehearsal(load):
                _make(pipe, [Served(each)] * count, time.perf_counter())
        start = time.perf_counter()

        def arrive() -> None:
            for each in served:
                time.sleep(max(0.0, start + each.arrival.at - time.perf_counter()))
                waiting.put(each)

        thread = threading.Thread(target=arrive)
        thread.start()
        left, held = len(served), list[Served]()
        while left:
            if not held:
                held.append(waiting.get())
            batch = _batch(held, waiting, start, window)
            held = [each for each in held if each not in batch]
            _make(pipe, batch, start)
            left -= len(batch)
        thread.join()
    return served


def _batch(
    held: list[Served], waiting: queue.Queue[Served], start: float, window: float
) -> list[Served]:
    """Returns the oldest request and those equal to it that come within the window."""
    first = held[0]
    end = start + first.arrival.at + window
    while len(_equal(held, first)) < MOST and window:
        try:
            held.append(waiting.get(timeout=max(0.0, end - time.perf_counter())))
        except queue.Empty:
            break
    return _equal(held, first)[: MOST if window else 1]


def _equal(held: Sequence[Served], first: Served) -> list[Served]:
    return [each for each in held if each.arrival.words == first.arrival.words]


def _make(pipe: eri.Pipeline, batch: Sequence[Served], start: float) -> None:
    """Makes the pictures of a batch, with one preview each in the middle."""
    first = batch[0].arrival
    request = pipe.request(
        [each.arrival.prompt for each in batch],
        seed=[each.arrival.seed for each in batch],
        **first.words,
    )
    last = None
    for step in pipe.denoise(request):
        if step.index == round(step.total / 2) - 1 and step.index < step.total - 1:
            pipe.preview(request, step)
            for each in batch:
                each.preview = time.perf_counter() - start - each.arrival.at
        last = step
    assert last is not None  # noqa: S101 every request has a step
    pipe.finish(request, last.x)
    for each in batch:
        each.done = time.perf_counter() - start - each.arrival.at


def _rehearsal(load: Sequence[Arrival]) -> list[Arrival]:
    """Returns short requests of every size and guidance, which open or compile what they need."""
    kinds = {(each.size, each.guidance): each for each in load}
    return [replace(each, at=0.0, steps=4) for each in kinds.values()]


def by_the_step(bundle: Path, backend: str, load: Sequence[Arrival]) -> list[Served]:
    """Serves requests with our engine."""
    return asyncio.run(_by_the_step(bundle, backend, load))


async def _by_the_step(bundle: Path, backend: str, load: Sequence[Arrival]) -> list[Served]:
    served = [Served(each) for each in load]
    options = EngineOptions(
        backend=backend, workers=1, queue=len(load) + 10, running=16, timeout=3600
    )
    async with Engine({"bundle": bundle}, options) as engine:
        for count in (1, 2, 4, 8):
            for each in _rehearsal(load):
                now = time.perf_counter()
                await asyncio.gather(*(_follow(engine, Served(each), now) for _ in range(count)))
        start = time.perf_counter()
        await asyncio.gather(*(_follow(engine, each, start) for each in served))
    return served


async def _follow(engine: Engine, served: Served, start: float) -> None:
    arrival = served.arrival
    await asyncio.sleep(max(0.0, start + arrival.at - time.perf_counter()))
    words = {**arrival.words, "seed": arrival.seed}
    request = PictureRequest(prompt=arrival.prompt, words=words, previews=1)
    async for event in engine.submit(request):
        now = time.perf_counter() - start - arrival.at
        if isinstance(event, Progress) and event.images:
            served.preview = now
        elif isinstance(event, Pictures):
            served.done = now


SERVERS: Mapping[str, Serve] = {
    "one at a time": one_at_a_time,
    "in windows": in_windows,
    "by the step": by_the_step,
}


def summary(served: Sequence[Served]) -> dict[str, Any]:
    """Returns throughput, latencies and times to the first preview."""
    import numpy as np

    finished = max(each.arrival.at + each.done for each in served)
    short = [each.done for each in served if each.arrival.short]
    previews = [each.preview for each in served if each.preview == each.preview]  # not NaN
    everyone = [each.done for each in served]

    def of(values: Sequence[float]) -> dict[str, float]:
        p50, p99 = np.percentile(values, [50, 99])
        return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}

    return {
        "pictures_per_minute": round(60 * len(served) / finished, 2),
        "latency_s": of(everyone),
        "short_latency_s": of(short),
        "first_preview_s": of(previews),
    }
