"""What is done, in which order, and each in a process of its own: a crash costs its own rows only.

A job's process writes its rows to a file as they are made, so those before the crash are kept.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.parity import failure
from benchmarks.gpu.settings import ENGINES, Case, Part, Settings
from benchmarks.gpu.subjects import subjects_of

ALL = "all"  # the subject of a job that is not of one
LEAST_SECONDS = 5.0  # nothing is begun that would have less
# module and function of each part; only what a job needs is imported, as its memory is measured
WORKERS: Mapping[Part, tuple[str, str]] = {
    "bundle": ("bundles", "make_bundle"),
    "plan": ("bundles", "make_plans"),
    "parity": ("parity", "compare"),
    "latency": ("latency", "time_all"),
    "memory": ("memory", "measure"),
}
TOLD = 1500  # characters of what a process said before it died


@dataclass(frozen=True)
class Job:
    """A part of the benchmark, of one model, and of one subject or all."""

    part: Part
    case: Case
    subject: str = ALL

    def __str__(self) -> str:
        return f"{self.part} of {self.case}, {self.subject}"

    def row(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """`found`, and what it is of."""
        about = {"part": self.part, "model": self.case.model, "size": self.case.size}
        return {**about, "subject": self.subject, "status": "ok", **found}


Runner = Callable[[Job, Settings, float], Iterator[dict[str, Any]]]


def jobs_of(settings: Settings, parts: Sequence[Part]) -> list[Job]:
    """Every job, the most important first: of each model in turn all but its memory."""
    jobs: list[Job] = []
    cases = settings.cases()
    for case in cases:
        jobs.append(Job("bundle", case))
        jobs += [Job("plan", case, name) for name in settings.backends if name in ENGINES]
        jobs += [Job("parity", case, name) for name in settings.backends]
        jobs.append(Job("latency", case))
    jobs += [Job("memory", case, name) for case in cases for name in subjects_of(settings)]
    return [job for job in jobs if job.part in parts]


def work(job: Job, settings: Settings) -> Iterator[dict[str, Any]]:
    """Do a job in this process; what it raises is its last row."""
    module, name = WORKERS[job.part]
    try:
        worker = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)
        for found in worker(settings, job.case, job.subject):
            yield job.row(found)
    except Exception as error:
        yield job.row(failure(job.subject, error))


def here(job: Job, settings: Settings, _seconds: float) -> Iterator[dict[str, Any]]:
    """A `Runner` without a process, which no crash spares."""
    return work(job, settings)


def apart(job: Job, settings: Settings, seconds: float) -> Iterator[dict[str, Any]]:
    """A `Runner` in a fresh process, which is ended after so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        told = {"job": [job.part, job.case.model, job.case.size, job.subject]}
        told |= {"settings": settings.to_json(), "rows": str(rows)}
        command = [sys.executable, "-m", "benchmarks.gpu.jobs", json.dumps(told)]
        ended = _ended(command, seconds)
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.is_file() else []
        for line in lines:
            yield json.loads(line)
        if ended is not None:
            yield job.row({"status": "error", "error": ended})


def _ended(command: list[str], seconds: float) -> str | None:
    """What a process died of, or None for one that did not."""
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"stopped: the budget left it {seconds:.0f} s"
    if done.returncode == 0:
        return None
    return f"status {done.returncode}: {done.stderr.strip()[-TOLD:]}"


def run_all(
    jobs: Sequence[Job], settings: Settings, budget: float, runner: Runner
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each job; those that the budget, in seconds, does not reach are named."""
    end = time.perf_counter() + budget
    for job in jobs:
        left = end - time.perf_counter()
        if left < LEAST_SECONDS:
            yield [
                job.row({"status": "skipped", "reason": f"the budget of {budget:.0f} s is spent"})
            ]
            continue
        yield list(runner(job, settings, left))


def main() -> None:
    """Do the one job that the command line holds as JSON."""
    told = json.loads(sys.argv[1])
    part, model, size, subject = told["job"]
    warnings.simplefilter("ignore")  # of diffusers and torch, about themselves
    job = Job(part, Case(model, size), subject)
    with Path(told["rows"]).open("a", encoding="utf-8") as rows:
        for row in work(job, Settings.from_json(told["settings"])):
            rows.write(json.dumps(row, allow_nan=False) + "\n")
            rows.flush()


if __name__ == "__main__":
    main()
