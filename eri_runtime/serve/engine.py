"""The engine: accepts requests, queues them, and streams their previews and pictures.

async with Engine({"demo": Path("engines/demo")}) as engine:
    async for event in engine.submit(PictureRequest(prompt="a red heart", previews=3)):
        ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from eri_runtime.bundle import Bundle
from eri_runtime.serve.messages import Event, PictureRequest
from eri_runtime.serve.observer import UNOBSERVED, Observer
from eri_runtime.serve.options import DEFAULT_OPTIONS, EngineOptions


@dataclass(frozen=True)
class Model:
    """A bundle that an engine serves.

    Attributes:
        name: Its name, that of its folder.
        bundle: Its manifest.
        created: When its manifest was written, seconds since 1970.
    """

    name: str
    bundle: Bundle
    created: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """What an engine is doing.

    Attributes:
        ready: Whether it accepts requests, and a worker is there to run them.
        stopping: Whether it is being shut down.
        waiting: Requests that no worker runs yet.
        running: Requests that a worker runs.
        workers: Workers that are alive.
        restarts: Workers that were started anew.
    """

    ready: bool
    stopping: bool
    waiting: int
    running: int
    workers: int
    restarts: int


class Submission:
    """A request that was accepted: an asynchronous iterator of its events.

    The last event is `Pictures`. Iterating raises what went wrong: `UsageError` for a request that
    the bundle cannot run, `ServingError`, `OutOfMemoryError`, `NonFiniteError` or another
    `EriError`. Leaving the loop does not cancel the request; `cancel` does.

    Attributes:
        id: A name that no other request of the engine has.
        request: The request, with its model's name.
    """

    id: str
    request: PictureRequest

    def __aiter__(self) -> AsyncIterator[Event]:
        raise NotImplementedError

    def cancel(self) -> None:
        """Stops the request at its next step; iterating then raises `CancelledError`.

        Does nothing if it has ended.
        """
        raise NotImplementedError


class Engine:
    """Serves pictures from bundles, with everything a server needs but HTTP.

    Attributes:
        models: The bundles by name; the first is the default.
        options: The options.
    """

    models: Mapping[str, Model]
    options: EngineOptions

    def __init__(
        self,
        bundles: Mapping[str, Path],
        options: EngineOptions = DEFAULT_OPTIONS,
        observer: Observer = UNOBSERVED,
    ) -> None:
        """Reads the manifests; raises `BundleError` for a bundle that cannot be used."""

    async def start(self) -> None:
        """Starts the workers, and returns when one is ready."""

    def submit(self, request: PictureRequest) -> Submission:
        """Accepts a request.

        Raises:
            UnknownNameError: For a model or LoRA that the engine does not have.
            UsageError: If the request is larger than the limits, or invalid.
            OverloadedError: If the queue is full; `retry_after` says when to try again.
            OutOfMemoryError: If the request cannot fit into memory.
            StoppingError: If the engine is being shut down.
        """
        raise NotImplementedError

    @property
    def submissions(self) -> Mapping[str, Submission]:
        """The requests that wait or run, by their ids, oldest first."""
        raise NotImplementedError

    @property
    def status(self) -> Status:
        """What the engine is doing."""
        raise NotImplementedError

    async def drain(self, grace: float) -> None:
        """Refuses new requests, and waits up to `grace` seconds for those accepted.

        What is left then ends with `StoppingError`.
        """

    async def close(self) -> None:
        """Stops the workers at once; requests that are left end with `StoppingError`."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
