"""The requests of AUTOMATIC1111's clients that wait or run: their progress, and their end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eri_runtime.serve.messages import Event, Progress
from eri_runtime.serve.submission import Submission

if TYPE_CHECKING:
    from PIL.Image import Image


class TrackedRequest(Submission):
    """A request that remembers how far it is, while its events pass.

    Attributes:
        progress: The last step, or None before the first.
        preview: The last preview of its first picture, or None before the first.
        began: When it was submitted, by `time.time`.
    """

    def __init__(self, submission: Submission) -> None:
        self.id, self.request = submission.id, submission.request
        self.progress: Progress | None = None
        self.preview: Image | None = None
        self.began = time.time()
        self._submission = submission

    async def __aiter__(self) -> AsyncIterator[Event]:
        async for event in self._submission:
            if isinstance(event, Progress):
                self.progress = event
                self.preview = event.images[0] if event.images else self.preview
            yield event

    def cancel(self) -> None:
        """Stops the request at its next step."""
        self._submission.cancel()


@dataclass
class Jobs:
    """The jobs of a server, by their ids, oldest first."""

    running: dict[str, TrackedRequest] = field(default_factory=dict)

    @contextmanager
    def tracked(self, submission: Submission) -> Iterator[TrackedRequest]:
        """Counts a request as running in this block, where its events are to be read."""
        job = self.running[submission.id] = TrackedRequest(submission)
        try:
            yield job
        finally:
            del self.running[submission.id]

    @property
    def oldest(self) -> TrackedRequest | None:
        """The job that has been there the longest, or None."""
        return next(iter(self.running.values()), None)

    def interrupt(self) -> None:
        """Cancels all jobs."""
        for job in self.running.values():
            job.cancel()

    def skip(self) -> None:
        """Cancels the oldest job."""
        if self.oldest is not None:
            self.oldest.cancel()

    def state(self) -> dict[str, Any]:
        """Returns the reply of `/progress` about the oldest job, without its picture."""
        job = self.oldest
        step, steps = (job.progress.step, job.progress.total) if job and job.progress else (0, 0)
        share = step / steps if steps else 0.0
        spent = time.time() - job.began if job else 0.0
        began = time.strftime("%Y%m%d%H%M%S", time.localtime(job.began)) if job else "0"
        return {
            "progress": share,
            "eta_relative": spent / share - spent if share else 0.0,
            "state": {
                "skipped": False,
                "interrupted": False,
                "stopping_generation": False,
                "job": job.id if job else "",
                "job_count": len(self.running),
                "job_timestamp": began,
                "job_no": 0,
                "sampling_step": step,
                "sampling_steps": steps,
            },
            "textinfo": None,
        }
