"""What an engine tells of itself, for metrics; see `Observer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["finished", "failed", "cancelled", "late", "lost", "stopped"]


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One engine call that made a step of several requests.

    Attributes:
        model: Name of the bundle.
        width: Width of the pictures in pixels.
        height: Height of the pictures in pixels.
        requests: Requests that made a step.
        rows: Rows of the denoiser's batch.
        seconds: How long it took.
    """

    model: str
    width: int
    height: int
    requests: int
    rows: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A request that has ended.

    Attributes:
        model: Name of the bundle.
        outcome: How it ended: "late" is past its deadline, "lost" with its workers, "stopped" by
            the engine's end.
        waited: Seconds until a worker began it.
        seconds: Seconds from submission to the end.
        first_preview: Seconds from submission to the first preview, or None if it made none.
        pictures: Number of pictures made.
    """

    model: str
    outcome: Outcome
    waited: float
    seconds: float
    first_preview: float | None
    pictures: int


class Observer:
    """Is told what an engine does; does nothing with it. Its methods must return at once."""

    def stepped(self, step: StepTime) -> None:
        """A worker made a step."""

    def ended(self, end: Ended) -> None:
        """A request ended."""

    def refused(self, reason: str) -> None:
        """A request was refused: the name of the error's class."""

    def restarted(self) -> None:
        """A worker died or hung, and is started anew."""


UNOBSERVED = Observer()
