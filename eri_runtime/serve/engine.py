"""The engine: accepts requests, queues them, and streams their previews and pictures.

async with Engine({"demo": Path("engines/demo")}) as engine:
    async for event in engine.submit(PictureRequest(prompt="a red heart", previews=3)):
        ...
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from eri_runtime.serve.admission import Admitted, admit
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
from eri_runtime.serve.supervisor import Supervisor

WAIT = 0.5  # seconds between looks at what may have changed


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
        self._workers = Supervisor(self._paths, options, self._heard, self._lost)
        self._times = StepTimes()
        self._stopping = False
        self._changed = asyncio.Event()
        self._unable: Exception | None = None

    async def start(self) -> None:
        """Starts the workers, and returns when one is ready.

        Raises:
            BackendError: If the workers cannot run the bundles.
            WorkerLostError: If none gets ready.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._workers.start()
            await self._first_ready()
        except BaseException:
            await self.close()
            raise

    async def _first_ready(self) -> None:
        """Waits until a worker is ready; raises if none will be."""
        while not self._workers.ready:
            if self._workers.hopeless:
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
        with self._counting_refusals():
            self._check_room()
            return self._accept_all(request, self._admit(request))

    async def submit_async(self, request: PictureRequest) -> Submission:
        """Accepts a request as `submit` does, while the event loop goes on.

        A picture to start from may take a second to resize: that is done in a thread.
        """
        if request.words.get("image") is None:
            return self.submit(request)
        with self._counting_refusals():
            self._check_room()
            admitted = await asyncio.to_thread(self._admit, request)
            return self._accept_all(request, admitted)

    @contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        """Tells the observer of a request that is refused within the block."""
        try:
            yield
        except EriError as error:
            self._observer.refused(type(error).__name__)
            raise

    def _check_room(self, more: int = 1) -> None:
        """Raises unless the engine runs, and its queue has room for so many requests."""
        if self._stopping:
            raise _stopping_error()
        if len(self._submissions) + more > self.options.queue:
            raise self._overloaded()

    def _admit(self, request: PictureRequest) -> list[Admitted]:
        """Checks a request; the engine's state does not matter to it, so any thread may."""
        bundles = {name: model.bundle for name, model in self.models.items()}
        return admit(bundles, self.options, request)

    def _accept_all(self, request: PictureRequest, admitted: Sequence[Admitted]) -> Submission:
        """Queues the parts of a request, if there is room for all."""
        self._check_room(len(admitted))
        parts = [self._accept(*each) for each in admitted]
        return parts[0] if len(parts) == 1 else JointSubmission(request, parts)

    def _overloaded(self) -> OverloadedError:
        """Returns the error of a full queue, with the time to try again."""
        got = f"{len(self._submissions)} requests already"
        error = OverloadedError("queue", got=got, expected=f"at most {self.options.queue}")
        error.retry_after = self._times.until_free(self._undone(), len(self._workers.seats))
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
        waiting, ready = len(self._waiting), self._workers.ready
        return Status(
            ready=ready > 0 and not self._stopping,
            stopping=self._stopping,
            waiting=waiting,
            running=len(self._submissions) - waiting,
            workers=ready,
            restarts=self._workers.restarts,
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
        self._stopping = True
        self._end_all()
        await self._workers.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _heard(self, seat: Seat, message: FromWorker) -> None:
        """Takes a message of a worker."""
        if isinstance(message, Unable):
            self._unable = message.error
        elif not seat.ready:
            seat.ready = True
            self._dispatch()
        if isinstance(message, Stepped):
            self._stepped(seat, message)
        elif isinstance(message, Began | Happened | Failed):
            submission = seat.jobs.get(message.id)
            if submission is not None:
                self._happened(submission, message)
        self._notify()

    def _stepped(self, seat: Seat, message: Stepped) -> None:
        """Takes the steps that a worker has made."""
        seat.failures = 0
        for time in message.times:
            self._times.add(time)
            self._observer.stepped(time)
        for name, progress in message.progress:
            if name in seat.jobs:
                seat.jobs[name].progressed(progress)

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

    def _lost(self, held: Sequence[HeldSubmission]) -> None:
        """Begins the requests of a worker again that has gone."""
        self._observer.restarted()
        for submission in reversed(held):
            submission.attempts += 1
            if submission.attempts >= self.options.attempts:
                got = f"{submission.attempts} workers that died or hung under it"
                expected = "one that makes its pictures"
                error = WorkerLostError(f"request {submission.id}", got=got, expected=expected)
                self._end(submission, "lost", error)
            else:
                self._waiting.appendleft(submission)
        self._notify()

    def _dispatch(self) -> None:
        """Gives waiting requests to the workers, the oldest first.

        A request under which a worker died runs alone, so that it takes no other along again.
        """
        for submission in list(self._waiting):
            free = [
                seat for seat in self._workers.seats if seat.takes(submission, self.options.running)
            ]
            if not free:
                return
            self._waiting.remove(submission)
            seat = min(free, key=lambda each: len(each.jobs))
            seat.jobs[submission.id] = submission
            assert seat.link is not None  # noqa: S101 it is ready
            seat.link.send(Run(submission.id, submission.request))

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
        for seat in self._workers.seats:
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

    def _notify(self) -> None:
        self._changed.set()

    async def _change(self, timeout: float = WAIT) -> None:
        """Waits until something has happened, or for a while."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), max(0.0, timeout))
        except TimeoutError:
            return


def _stopping_error() -> StoppingError:
    return StoppingError("engine", got="a shutdown", expected="a running one; ask another")
