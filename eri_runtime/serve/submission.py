"""A request that an engine has accepted, as its client sees it."""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from time import monotonic

from eri_runtime.errors import ServingError
from eri_runtime.request import Request
from eri_runtime.serve.messages import Event, PictureRequest, Pictures, Progress
from eri_runtime.serve.observer import Ended, Outcome

MOST_UNREAD = 64 * 2**20  # bytes of previews that are held for a client who does not read them


class Submission(ABC):
    """A request that was accepted: an asynchronous iterator of its events.

    The last event is `Pictures`. Iterating raises what went wrong: `UsageError` for a request that
    the bundle cannot run, `ServingError`, `OutOfMemoryError`, `NonFiniteError` or another
    `EriError`. Leaving the loop does not cancel the request; `cancel` does. Every iteration begins
    with the first event that no other has taken. A request for more pictures than one call makes
    can be read only once, and is cancelled when its loop is left.

    Attributes:
        id: A name that no other request of the engine has.
        request: The request, with its model's name.
    """

    id: str
    request: PictureRequest

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[Event]:
        """Yields the events; raises what went wrong."""

    @abstractmethod
    def cancel(self) -> None:
        """Stops the request at its next step; iterating then raises `CancelledError`.

        Does nothing if it has ended.
        """

    async def pictures(self) -> Pictures:
        """Waits for the pictures and returns them; raises what went wrong."""
        async for event in whole(self):
            if isinstance(event, Pictures):
                pictures = event
        return pictures


async def whole(submission: Submission) -> AsyncIterator[Event]:
    """Yields all events of a request; raises `ServingError` if the pictures are not among them."""
    last: Event | None = None
    async for event in submission:
        last = event
        yield event
    if not isinstance(last, Pictures):
        got, expected = "no pictures", "some; read them once"
        raise ServingError(f"request {submission.id}", got=got, expected=expected)


class HeldSubmission(Submission):
    """A request as its engine holds it.

    Attributes:
        progress: Its latest step, or None before the first.
        attempts: Workers that died or hung under it.
        timer: Ends it at its deadline.
    """

    def __init__(
        self,
        request: PictureRequest,
        checked: Request,
        cancel: Callable[[HeldSubmission], None],
    ) -> None:
        self.id, self.request = secrets.token_hex(8), request
        self.progress: Progress | None = None
        self.attempts = 0
        self.timer: asyncio.TimerHandle | None = None
        self._steps, self._pictures = checked.steps, checked.batch
        self._cancel = cancel
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()  # None: there are no more
        self._unread = 0  # bytes of previews that nobody has taken yet
        self._submitted = monotonic()
        self._began: float | None = None
        self._first_preview: float | None = None
        self._result: Pictures | Exception | None = None

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yields the events; raises what went wrong."""
        while (event := await self._events.get()) is not None:
            self._unread -= _size(event)
            yield event
        self._events.put_nowait(None)  # for others who iterate
        if isinstance(self._result, Exception):
            raise self._result

    def cancel(self) -> None:
        self._cancel(self)

    @property
    def ended(self) -> bool:
        """Whether it has ended, well or not."""
        return self._result is not None

    @property
    def steps_left(self) -> int:
        """Number of steps that it has yet to make."""
        if self.progress is None:
            return self._steps
        return self.progress.total - self.progress.step

    def began(self) -> None:
        """Notes that a worker has begun it."""
        if self._began is None:
            self._began = monotonic()

    def progressed(self, progress: Progress) -> None:
        """Takes a step."""
        if progress.images and self._first_preview is None:
            self._first_preview = monotonic()
        if self.progress is None or progress.step > self.progress.step or not progress.images:
            self.progress = progress
        if self._unread + _size(progress) > MOST_UNREAD:
            progress = replace(progress, images=())
        self._unread += _size(progress)
        self._events.put_nowait(progress)

    def end(self, outcome: Outcome, result: Pictures | Exception) -> Ended:
        """Takes the result, and returns what there is to tell of it."""
        self._result = result
        if isinstance(result, Pictures):
            self._events.put_nowait(result)
        self._events.put_nowait(None)
        if self.timer is not None:
            self.timer.cancel()
        now, first = monotonic(), self._first_preview
        return Ended(
            model=self.request.model,
            outcome=outcome,
            waited=(self._began or now) - self._submitted,
            seconds=now - self._submitted,
            first_preview=None if first is None else first - self._submitted,
            pictures=self._pictures if outcome == "finished" else 0,
        )


def _size(event: Event) -> int:
    """Returns the bytes that the previews of an event take; 0 for the pictures."""
    images = event.images if isinstance(event, Progress) else ()
    return sum(each.width * each.height * len(each.getbands()) for each in images)
