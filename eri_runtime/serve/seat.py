"""A worker's place in an engine: the worker there now, and what it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from eri_runtime.serve.links import Link
from eri_runtime.serve.submission import HeldSubmission


@dataclass(eq=False)
class Seat:
    """A worker's place.

    Attributes:
        link: The way to the worker that is there; None between two.
        number: Counts the workers that were there, so that none is taken for another.
        ready: Whether the worker has given a sign of life.
        heard: When it was last heard, by `time.monotonic`.
        failures: Workers in a row that went without having made a step.
        jobs: The requests that it runs, by id.
    """

    link: Link | None = None
    number: int = 0
    ready: bool = False
    heard: float = 0.0
    failures: int = 0
    jobs: dict[str, HeldSubmission] = field(default_factory=dict)

    def takes(self, submission: HeldSubmission, most: int) -> bool:
        """Returns whether the worker can run another request.

        One under which a worker died runs alone.
        """
        if not self.ready or self.link is None:
            return False
        if submission.attempts or any(each.attempts for each in self.jobs.values()):
            return not self.jobs
        return len(self.jobs) < most
