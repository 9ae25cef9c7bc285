"""What an engine and its workers say to each other. All of it can be pickled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eri_runtime.serve.messages import Event, PictureRequest, Progress
from eri_runtime.serve.observer import StepTime


@dataclass(frozen=True)
class Run:
    """To a worker: run a request."""

    id: str
    request: PictureRequest


@dataclass(frozen=True)
class Cancel:
    """To a worker: forget a request."""

    id: str


@dataclass(frozen=True)
class Stop:
    """To a worker: end."""


@dataclass(frozen=True)
class Alive:
    """From a worker: it is there, and begins something new."""


@dataclass(frozen=True)
class Unable:
    """From a worker, the last message: it cannot run the bundles."""

    error: Exception


@dataclass(frozen=True)
class Began:
    """From a worker: it has begun a request."""

    id: str


@dataclass(frozen=True)
class Happened:
    """From a worker: an event of a request; `Pictures` is the last."""

    id: str
    event: Event


@dataclass(frozen=True)
class Failed:
    """From a worker: a request has failed."""

    id: str
    error: Exception


@dataclass(frozen=True)
class Stepped:
    """From a worker: the steps that it made, and how far requests came with them, by id."""

    times: Sequence[StepTime]
    progress: Sequence[tuple[str, Progress]]


ToWorker = Run | Cancel | Stop
FromWorker = Alive | Unable | Began | Happened | Failed | Stepped
