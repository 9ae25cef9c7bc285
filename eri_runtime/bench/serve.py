"""A worker's side: what it is asked, and the loop that answers. Shared by workers of all kinds."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PR_SET_PDEATHSIG = 1
SAID = 600  # characters of an error


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is opened: `variant` is the backend, or the way to run PyTorch."""

    variant: str
    bundle: str
    checkpoint: str | None
    threads: int
    device: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A call: `latents` is a file of unit noise (B, C, h, w), `output` the PNG's name, or None for
    no more than the denoising."""

    prompt: str
    seed: int
    images: int
    width: int
    height: int
    steps: int
    guidance: float
    tokens: int
    latents: str
    output: str | None


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a worker says when it is ready.

    `harness_s` is what importing this package took in a process that has no need of it otherwise;
    it is taken off the time of its start.
    """

    words: str
    precision: str
    versions: Mapping[str, str]
    harness_s: float = 0.0


class Drawer(Protocol):
    """What is open."""

    def draw(self, job: Job, watch: Stopwatch) -> None:
        """Do a job: mark the end of each stage on the watch, and write the PNGs."""
        ...


class Stopwatch:
    """Milliseconds between marks, the first from when it was made."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last = self._begun = clock()
        self._marks: list[tuple[str, float]] = []

    def mark(self, stage: str) -> None:
        """The end of a stage; `step` may come often."""
        now = self._clock()
        self._marks.append((stage, 1e3 * (now - self._last)))
        self._last = now

    def read(self) -> dict[str, Any]:
        """The fields of a `record.Sample`."""

        def of(stage: str) -> float:
            return round(sum(each for name, each in self._marks if name == stage), 4)

        steps = [round(each, 4) for name, each in self._marks if name == "step"]
        return {
            "encode": of("encode"),
            "steps": steps,
            "denoise": of("step"),
            "decode": of("decode"),
            "png": of("png"),
            "total": round(1e3 * (self._last - self._begun), 4),
        }


def png_files(output: str, images: int) -> list[Path]:
    """Where the pictures of a job go."""
    path = Path(output)
    return [path.with_stem(f"{path.stem}-{i}") for i in range(images)] if images > 1 else [path]


def serve(make: Callable[[Setup], tuple[Drawer, Opened]]) -> None:
    """Answer the parent until it closes the pipe, or dies.

    The pipe is kept for answers alone: what libraries print goes to standard error.
    """
    die_with_parent()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    drawer: Drawer | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked["do"] == "open":
                drawer, opened = make(Setup(**asked["setup"]))
                answer: dict[str, Any] = {"ok": vars(opened)}
            else:
                answer = {"ok": _drawn(drawer, Job(**asked["job"]))}
        except Exception as error:  # the parent is told, and decides
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:SAID]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def die_with_parent() -> None:
    """Ask Linux for SIGKILL when the parent is gone: one that is paused would not see the pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _drawn(drawer: Drawer | None, job: Job) -> dict[str, Any]:
    if drawer is None:
        raise RuntimeError("asked to draw before it was opened")
    watch = Stopwatch()
    drawer.draw(job, watch)
    return watch.read()
