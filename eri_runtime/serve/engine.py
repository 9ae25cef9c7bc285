"""The engine: accepts requests, queues them, and streams their previews and pictures.

async with Engine({"demo": Path("engines/demo")}) as engine:
    async for event in engine.submit(PictureRequest(prompt="a red heart", previews=3)):
        ...
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Self

from eri_runtime.errors import (
    CancelledError,
    DeadlineError,
    EriError,
    OverloadedError,
    StoppingError,
    UsageError,
    WorkerLostError,
)
from eri_runtime.request import Request
from eri_runtime.serve.admission import admit
from eri_runtime.serve.links import ProcessLink, ThreadLink
from eri_runtime.serve.messages import PictureRequest, Pictures
from eri_runtime.serve.observer import UNOBSERVED, Observer, Outcome
from eri_runtime.serve.options import DEFAULT_OPTIONS, EngineOptions
from eri_runtime.serve.parts import JointSubmission
from eri_runtime.serve.protocol import (
    Began,
    Cancel,
    Failed,
    FromWorker,
    Happened,
    Run,
    Stepped,
    Unable,
)
from eri_runtime.serve.seat import Seat
from eri_runtime.serve.status import Model, Status, read_model
from eri_runtime.serve.step_times import StepTimes
from eri_runtime.serve.submission import HeldSubmission, Submission

WATCH = 0.5  # seconds between looks at the workers
LONGEST_PAUSE = 30.0  # seconds before a worker that keeps dying is started again

log = logging.getLogger(__name__)


class Engine:
    """Serves pictures from bundles, with everything a server needs but HTTP.

    All methods must be called from the event loop that `start` was called from.

    Args:
        bundles: Folders of bundles by the names that requests use; the first is the default.
        options: Workers, queue and limits.
        observer: Is told what happens, for metrics.

    Attributes:
        models: The bundles by name.
        options: The options.

    Raises:
        BundleError: If a bundle cannot be used.
        UsageError: If there is none.
    """

    def __init__(
        self,
        bundles: Mapping[str, Path],
        options: EngineOptions = DEFAULT_OPTIONS,
        observer: Observer = UNOBSERVED,
    ) -> None:
        if not bundles:
            raise UsageError("bundles", got="none", expected="at least one")
        self.options, self._observer = options, observer
        self._paths = {name: Path(path).absolute() for name, path in bundles.items()}
        self.models: Mapping[str, Model] = {
            name: read_model(name, path) for name, path in self._paths.items()
        }
        self._submissions: dict[str, HeldSubmission] = {}
        self._waiting: deque[HeldSubmission] = deque()
        self._seats: list[Seat] = []
        self._times = StepTimes()
        self._stopping, self._closed, self._restarts = False, False, 0
        self._watcher: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._unable: Exception | None = None

    async def start(self) -> None:
        """Starts the workers, and returns when one is ready.

        Raises:
            BackendError: If the workers cannot run the bundles.
            WorkerLostError: If none gets ready.
        """
        self._loop = asyncio.get_running_loop()
        count = max(1, self.options.workers)
        self._seats = [Seat() for _ in range(count)]
        try:
            for seat in self._seats:
                self._open(seat)
            self._watcher = asyncio.create_task(self._watch())
            await self._first_ready()
        except BaseException:
            await self.close()
            raise

    async def _first_ready(self) -> None:
        """Waits until a worker is ready; raises if none will be."""
        while not any(seat.ready for seat in self._seats):
            if any(seat.failures >= self.options.attempts for seat in self._seats):
                got = f"{self.options.attempts} workers that died as they started"
                self._unable = WorkerLostError("engine", got=got, expected="one that runs")
            if self._unable is not None:
                raise self._unable
            await self._change()

    def submit(self, request: PictureRequest) -> Submission:
        """Accepts a request.

        Raises:
            UnknownNameError: For a model or LoRA that the engine does not have.
            UsageError: If the request is larger than the limits, or invalid.
            OverloadedError: If the queue is full; `retry_after` says when to try again.
            OutOfMemoryError: If the request cannot fit into memory.
            StoppingError: If the engine is being shut down.
        """
        try:
            if self._stopping:
                raise _stopping_error()
            bundles = {name: model.bundle for name, model in self.models.items()}
            admitted = admit(bundles, self.options, request)
            self._check_room(len(admitted))
        except EriError as error:
            self._observer.refused(type(error).__name__)
            raise
        parts = [self._accept(*each) for each in admitted]
        return parts[0] if len(parts) == 1 else JointSubmission(request, parts)

    def _check_room(self, more: int) -> None:
        """Raises `OverloadedError` if the queue has no room for so many requests."""
        if len(self._submissions) + more > self.options.queue:
            raise self._overloaded()

    def _overloaded(self) -> OverloadedError:
        """Returns the error of a full queue, with the time to try again."""
        got = f"{len(self._submissions)} requests already"
        error = OverloadedError("queue", got=got, expected=f"at most {self.options.queue}")
        error.retry_after = self._times.until_free(self._undone(), len(self._seats))
        return error

    def _accept(self, request: PictureRequest, checked: Request) -> HeldSubmission:
        """Queues a request."""
        submission = HeldSubmission(request, checked, self._cancel)
        self._submissions[submission.id] = submission
        self._waiting.append(submission)
        timeout = min(request.timeout or self.options.timeout, self.options.timeout)
        submission.timer = self._loop.call_later(timeout, self._late, submission, timeout)
        self._dispatch()
        return submission

    @property
    def submissions(self) -> Mapping[str, Submission]:
        """The requests that wait or run, by their ids, oldest first."""
        return dict(self._submissions)

    @property
    def status(self) -> Status:
        """What the engine is doing."""
        waiting, ready = len(self._waiting), sum(seat.ready for seat in self._seats)
        return Status(
            ready=ready > 0 and not self._stopping,
            stopping=self._stopping,
            waiting=waiting,
            running=len(self._submissions) - waiting,
            workers=ready,
            restarts=self._restarts,
        )

    def _cancel(self, submission: HeldSubmission) -> None:
        """Stops a request at its next step; see `Submission.cancel`."""
        error = CancelledError(f"request {submission.id}", got="cancelled", expected="pictures")
        self._end(submission, "cancelled", error)

    async def drain(self, grace: float) -> None:
        """Refuses new requests, and waits up to `grace` seconds for those accepted.

        What is left then ends with `StoppingError`.
        """
        self._stopping = True
        end = monotonic() + grace
        while self._submissions and monotonic() < end:
            await self._change(end - monotonic())
        self._end_all()

    async def close(self) -> None:
        """Stops the workers at once; requests that are left end with `StoppingError`."""
        self._stopping = self._closed = True
        self._end_all()
        if self._watcher is not None:
            self._watcher.cancel()
        links = [seat.link for seat in self._seats if seat.link is not None]
        await asyncio.gather(*(asyncio.to_thread(link.close) for link in links))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _open(self, seat: Seat) -> None:
        """Starts the worker of a seat."""
        if self._closed:
            return
        seat.number += 1
        words = self._from_thread(seat, self._heard), self._from_thread(seat, self._lost)
        kind = ProcessLink if self.options.workers else ThreadLink
        seat.heard = monotonic()
        try:
            seat.link = kind(self._paths, self.options, *words)
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
        """Takes a message of a worker."""
        if number != seat.number:
            return
        seat.heard = monotonic()
        if isinstance(message, Unable):
            self._unable = message.error
        elif not seat.ready:
            seat.ready = True
            self._dispatch()
        if isinstance(message, Stepped):
            seat.failures = 0
            for time in message.times:
                self._times.add(time)
                self._observer.stepped(time)
            for name, progress in message.progress:
                if name in seat.jobs:
                    seat.jobs[name].progressed(progress)
        elif isinstance(message, Began | Happened | Failed):
            submission = seat.jobs.get(message.id)
            if submission is not None:
                self._happened(submission, message)
        self._notify()

    def _happened(self, submission: HeldSubmission, message: Began | Happened | Failed) -> None:
        """Takes what happened to a request."""
        if isinstance(message, Began):
            submission.began()
        elif isinstance(message, Failed):
            self._end(submission, "failed", message.error)
        elif isinstance(message.event, Pictures):
            self._end(submission, "finished", message.event)
        else:
            submission.progressed(message.event)

    def _lost(self, seat: Seat, number: int) -> None:
        """Starts a worker anew that has gone, and begins its requests again."""
        if number != seat.number or self._closed:
            return
        self._restarts += 1
        self._observer.restarted()
        seat.ready, seat.link = False, None
        seat.failures += 1
        held, seat.jobs = list(seat.jobs.values()), {}
        for submission in reversed(held):
            submission.attempts += 1
            if submission.attempts >= self.options.attempts:
                got = f"{submission.attempts} workers that died or hung under it"
                expected = "one that makes its pictures"
                error = WorkerLostError(f"request {submission.id}", got=got, expected=expected)
                self._end(submission, "lost", error)
            else:
                self._waiting.appendleft(submission)
        pause = min(LONGEST_PAUSE, 2.0 ** min(seat.failures - 1, 9) - 1)
        self._loop.call_later(pause, self._open, seat)
        self._notify()

    def _dispatch(self) -> None:
        """Gives waiting requests to the workers, the oldest first.

        A request under which a worker died runs alone, so that it takes no other along again.
        """
        for submission in list(self._waiting):
            free = [seat for seat in self._seats if seat.takes(submission, self.options.running)]
            if not free:
                return
            self._waiting.remove(submission)
            seat = min(free, key=lambda each: len(each.jobs))
            seat.jobs[submission.id] = submission
            run = Run(submission.id, submission.request)
            assert seat.link is not None  # noqa: S101 it is ready
            try:
                seat.link.send(run)
            except UsageError as error:
                self._loop.call_soon(self._end, submission, "failed", error)

    def _late(self, submission: HeldSubmission, timeout: float) -> None:
        got, expected = f"no pictures after {timeout:g} s", "pictures in that time"
        error = DeadlineError(f"request {submission.id}", got=got, expected=expected)
        self._end(submission, "late", error)

    def _end(
        self, submission: HeldSubmission, outcome: Outcome, result: Pictures | Exception
    ) -> None:
        """Ends a request, if it has not ended; a worker that runs it forgets it."""
        if self._submissions.pop(submission.id, None) is None:
            return
        if submission in self._waiting:
            self._waiting.remove(submission)
        for seat in self._seats:
            if seat.jobs.pop(submission.id, None) is None or outcome in ("finished", "failed"):
                continue
            if seat.link is not None:
                seat.link.send(Cancel(submission.id))
        self._observer.ended(submission.end(outcome, result))
        self._dispatch()
        self._notify()

    def _end_all(self) -> None:
        for submission in list(self._submissions.values()):
            self._end(submission, "stopped", _stopping_error())

    def _undone(self) -> list[int]:
        """Returns the steps that each accepted request has yet to make."""
        return [each.steps_left for each in self._submissions.values()]

    async def _watch(self) -> None:
        """Kills workers that have been silent for too long while they had work."""
        while True:
            await asyncio.sleep(min(WATCH, self.options.heartbeat / 4))
            for seat in self._seats:
                silent = monotonic() - seat.heard > self.options.heartbeat
                if silent and seat.link is not None:
                    seat.link.kill()
                    seat.heard = monotonic()

    def _notify(self) -> None:
        self._changed.set()

    async def _change(self, timeout: float = WATCH) -> None:
        """Waits until something has happened, or for a while."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), max(0.0, timeout))
        except TimeoutError:
            return


def _stopping_error() -> StoppingError:
    return StoppingError("engine", got="a shutdown", expected="a running one; ask another")
