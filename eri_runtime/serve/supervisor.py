"""Keeps a worker in every seat: starts one anew that died, and kills one that hangs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import monotonic

from eri_runtime.serve.links import ProcessLink, ThreadLink
from eri_runtime.serve.options import EngineOptions
from eri_runtime.serve.protocol import FromWorker
from eri_runtime.serve.seat import Seat
from eri_runtime.serve.submission import HeldSubmission

WATCH = 0.5  # seconds between looks at the workers
LONGEST_PAUSE = 30.0  # seconds before a worker that keeps dying is started again

log = logging.getLogger(__name__)


class Supervisor:
    """The workers of an engine.

    All methods must be called from the event loop that `start` was called from; `heard` and `lost`
    are called there.

    Args:
        paths: The bundles' folders by name.
        options: The engine's options.
        heard: Takes a message of the worker in a seat.
        lost: Takes the requests of a worker that has gone, oldest first.

    Attributes:
        seats: The workers' places.
        restarts: How many workers have gone.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        options: EngineOptions,
        heard: Callable[[Seat, FromWorker], None],
        lost: Callable[[Sequence[HeldSubmission]], None],
    ) -> None:
        self.seats: list[Seat] = []
        self.restarts = 0
        self._paths, self._options = paths, options
        self._on_heard, self._on_lost = heard, lost
        self._closed = False
        self._watcher: asyncio.Task[None] | None = None

    @property
    def ready(self) -> int:
        """How many workers are ready."""
        return sum(seat.ready for seat in self.seats)

    @property
    def hopeless(self) -> bool:
        """Whether a worker died again and again as it started."""
        return any(seat.failures >= self._options.attempts for seat in self.seats)

    def start(self) -> None:
        """Starts the workers, and watches them from now on."""
        self._loop = asyncio.get_running_loop()
        self.seats = [Seat() for _ in range(max(1, self._options.workers))]
        for seat in self.seats:
            self._open(seat)
        self._watcher = asyncio.create_task(self.watch())

    async def close(self) -> None:
        """Stops the workers at once."""
        self._closed = True
        if self._watcher is not None:
            self._watcher.cancel()
        links = [seat.link for seat in self.seats if seat.link is not None]
        await asyncio.gather(*(asyncio.to_thread(link.close) for link in links))

    async def watch(self) -> None:
        """Kills workers that have been silent for too long, for ever."""
        while True:
            await asyncio.sleep(min(WATCH, self._options.heartbeat / 4))
            for seat in self.seats:
                silent = monotonic() - seat.heard > self._options.heartbeat
                if silent and seat.link is not None:
                    seat.link.kill()
                    seat.heard = monotonic()

    def _open(self, seat: Seat) -> None:
        """Starts the worker of a seat."""
        if self._closed:
            return
        seat.number += 1
        words = self._from_thread(seat, self._heard), self._from_thread(seat, self._lost)
        kind = ProcessLink if self._options.workers else ThreadLink
        seat.heard = monotonic()
        try:
            seat.link = kind(self._paths, self._options, *words)
        except (OSError, RuntimeError) as error:  # no memory, processes or threads left
            log.error("a worker could not be started: %s", error)
            self._lost(seat, seat.number)

    def _from_thread(self, seat: Seat, method: Callable[..., None]) -> Callable[..., None]:
        """Returns a function for a link's thread that calls a method in the event loop."""
        method = partial(method, seat, seat.number)

        def call(*arguments: object) -> None:
            try:
                self._loop.call_soon_threadsafe(method, *arguments)
            except RuntimeError:  # the loop is closed
                return

        return call

    def _heard(self, seat: Seat, number: int, message: FromWorker) -> None:
        """Takes a message of a worker, if it is still there."""
        if number == seat.number:
            seat.heard = monotonic()
            self._on_heard(seat, message)

    def _lost(self, seat: Seat, number: int) -> None:
        """Starts a worker anew that has gone."""
        if number != seat.number or self._closed:
            return
        self.restarts += 1
        seat.ready, seat.link = False, None
        seat.failures += 1
        held, seat.jobs = list(seat.jobs.values()), {}
        pause = min(LONGEST_PAUSE, 2.0 ** min(seat.failures - 1, 9) - 1)
        self._loop.call_later(pause, self._open, seat)
        self._on_lost(held)
