"""What an engine serves and what it is doing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eri_runtime.bundle import MANIFEST, Bundle, read_bundle


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


def read_model(name: str, path: Path) -> Model:
    """Reads a bundle's manifest; raises `BundleError` if it cannot be used."""
    bundle = read_bundle(path)
    return Model(name, bundle, int((path / MANIFEST).stat().st_mtime))
