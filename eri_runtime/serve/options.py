"""What an operator decides about an engine: workers, queue, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal

from eri_runtime.checks import boolean, integer, real

MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest request that is accepted.

    Attributes:
        pixels: Pixels per picture.
        steps: Denoising steps.
        pictures: Pictures per request.
        prompt: Characters of a prompt.
        body: Bytes of a request's body, for servers.
    """

    pixels: int = 2048 * 2048
    steps: int = 150
    pictures: int = 10
    prompt: int = 32_000
    body: int = 64 * MEBIBYTE

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            integer(f"limits.{name}", value, 1)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of an `Engine`.

    Attributes:
        backend: As in `eri_runtime.load`.
        threads: CPU threads of each worker's engine. "auto": as in `eri_runtime.load` for one
            worker; several share the cores, as by default: the cores, divided by `workers`.
        low_memory: As in `eri_runtime.load`: workers share the pages of the weights' files. A call
            for a single row then rounds differently, so a picture's last bits may depend on its
            company.
        cache: As in `eri_runtime.load`: keep what the engine compiles for later processes.
        workers: Number of worker processes; 0 runs everything in a thread of this process.
        queue: Most requests that wait or run at once; more are refused.
        running: Most requests that a worker runs at once; the others wait.
        timeout: Seconds after which a request is given up, unless it names fewer.
        heartbeat: Seconds without a sign of life after which a busy worker is killed.
        attempts: How often a request is begun, at most, when workers die under it.
        memory: Bytes of open bundles' weights per worker; the least recently used are closed
            above it. Default: no limit.
        loras: LoRA files by name.
        limits: The largest request that is accepted.
    """

    backend: str = "auto"
    threads: int | Literal["auto"] | None = None
    low_memory: bool = False
    cache: bool = True
    workers: int = 1
    queue: int = 64
    running: int = 64
    timeout: float = 600.0
    heartbeat: float = 300.0
    attempts: int = 3
    memory: int | None = None
    loras: Mapping[str, Path] = field(default_factory=dict)
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        integer("workers", self.workers, 0)
        boolean("low_memory", self.low_memory)
        boolean("cache", self.cache)
        for name in ("queue", "running", "attempts"):
            integer(name, getattr(self, name), 1)
        for name in ("timeout", "heartbeat"):
            real(name, getattr(self, name), "seconds, more than 0", lambda value: 0 < value < inf)

    @property
    def worker_threads(self) -> int | Literal["auto"] | None:
        """CPU threads of a worker's engine, as `eri_runtime.load` takes them."""
        if self.workers < 2 or self.threads not in (None, "auto"):
            return self.threads
        from eri_runtime.executors import usable_cores  # here: the command line needs no engine

        return max(1, usable_cores() // self.workers)


DEFAULT_OPTIONS = EngineOptions()
