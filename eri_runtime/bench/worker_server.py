"""The worker's end of the connection: its requests and the loop that answers them.

Workers of all kinds use it.
"""

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
ERROR_LENGTH = 600  # characters of an error that are sent


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a worker opens.

    Attributes:
        variant: The backend, or the way to run PyTorch.
        bundle: Folder of the bundle.
        checkpoint: Folder of the checkpoint, for PyTorch and peers.
        threads: CPU threads.
        device: PyTorch's device, `cpu` or `cuda`.
        folder: Folder of the run for what a peer converts; its processes share it.
    """

    variant: str
    bundle: str
    checkpoint: str | None
    threads: int
    device: str
    folder: str = ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call.

    Attributes:
        prompt: The prompt.
        seed: The seed.
        images: Images per call.
        width: Width in pixels.
        height: Height in pixels.
        steps: Number of denoising steps.
        guidance: Classifier-free guidance scale.
        tokens: Maximum sequence length of the prompt.
        latents: File of unit noise, (B, C, h, w) float32.
        output: File of the PNG; None stops after the denoising.
    """

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
    """A worker's answer when it is ready.

    Attributes:
        words: Description of its engine and settings.
        precision: Precision of its denoiser.
        versions: Versions of packages that only this worker uses.
        harness_s: Seconds to import this package in a process that would not need it otherwise;
            subtracted from its start-up time.
    """

    words: str
    precision: str
    versions: Mapping[str, str]
    harness_s: float = 0.0


class Drawer(Protocol):
    """An open pipeline."""

    def draw(self, job: Job, watch: Stopwatch) -> None:
        """Runs a job: marks the end of each stage on `watch`, and writes the PNGs."""
        ...


class Stopwatch:
    """Measures the milliseconds between marks, from its construction on."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last = self._started = clock()
        self._marks: list[tuple[str, float]] = []

    @property
    def started(self) -> float:
        """The clock's time at its construction."""
        return self._started

    def now(self) -> float:
        """Returns the clock's time in seconds."""
        return self._clock()

    def mark(self, stage: str, at: float | None = None) -> None:
        """Marks the end of a stage; `step` may be marked many times.

        Args:
            stage: `encode`, `step`, `decode` or `png`.
            at: The clock's time at that end, not before the last mark's; default: now.
        """
        now = self.now() if at is None else at
        self._marks.append((stage, 1e3 * (now - self._last)))
        self._last = now

    def read(self) -> dict[str, Any]:
        """Returns the fields of a `record.Sample`."""

        def total(stage: str) -> float:
            return round(sum(each for name, each in self._marks if name == stage), 4)

        steps = [round(each, 4) for name, each in self._marks if name == "step"]
        return {
            "encode": total("encode"),
            "steps": steps,
            "denoise": total("step"),
            "decode": total("decode"),
            "png": total("png"),
            "total": round(1e3 * (self._last - self._started), 4),
        }


def png_files(output: str, images: int) -> list[Path]:
    """Returns the files of a job's images."""
    path = Path(output)
    return [path.with_stem(f"{path.stem}-{i}") for i in range(images)] if images > 1 else [path]


def serve(
    make: Callable[[Setup], tuple[Drawer, Opened]],
    convert: Callable[[Setup], bool] | None = None,
) -> None:
    """Answers the parent's requests until it closes the pipe or ends.

    Standard output is redirected to standard error, so that text that libraries print does not
    mix with the answers.

    Args:
        make: Opens a setup; returns the pipeline and the answer.
        convert: Converts the setup's checkpoint, for a peer that has its own format; returns
            whether it had to, or the folder of the run held the conversion already.
    """
    die_with_parent()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    drawer: Drawer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: dict[str, Any]
            if request["do"] == "open":
                drawer, opened = make(Setup(**request["setup"]))
                answer = {"ok": vars(opened)}
            elif request["do"] == "convert" and convert is not None:
                answer = {"ok": convert(Setup(**request["setup"]))}
            else:
                answer = {"ok": _draw(drawer, Job(**request["job"]))}
        except Exception as error:  # the parent decides what to do
            answer = {
                "error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:ERROR_LENGTH]
            }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent ends.

    A paused process would not notice that the pipe is closed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _draw(drawer: Drawer | None, job: Job) -> dict[str, Any]:
    """Runs a job and returns its times; raises RuntimeError if nothing is open."""
    if drawer is None:
        raise RuntimeError("asked to draw before it was opened")
    watch = Stopwatch()
    drawer.draw(job, watch)
    return watch.read()
