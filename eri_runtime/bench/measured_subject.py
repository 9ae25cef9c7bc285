"""A subject under measurement: its worker, its results so far, and why it failed if it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eri_runtime.bench.memory_watch import Watch
from eri_runtime.bench.plan import Candidate, Plan
from eri_runtime.bench.record import Memory, Sample, Status, Subject
from eri_runtime.bench.statistics import WHOLE, figure
from eri_runtime.bench.worker_client import Worker
from eri_runtime.bench.worker_server import Job, Setup
from eri_runtime.errors import EriError, WorkerError
from eri_runtime.install_hint import install_hint

# a worker whose error begins with one of these lacks something that is not installed
MISSING = ("BackendError", "ModuleNotFoundError", "ImportError")
Size = tuple[int, int]  # width, height
Case = tuple[Size, int]  # a size, and an index into the workload's cases
StartWorker = Callable[[Candidate], Worker]


@dataclass
class MeasuredSubject:
    """One subject's state during a run; `files` are the images it wrote, by case."""

    candidate: Candidate
    worker: Worker | None = None
    status: Status = "ok"
    reason: str | None = None
    opened: Mapping[str, Any] = field(default_factory=dict)
    open_s: float | None = None
    first_s: float | None = None
    convert_s: float | None = None
    cold_s: list[float] = field(default_factory=list)
    memory: Memory | None = None
    samples: dict[Size, list[Sample]] = field(default_factory=dict)
    files: dict[Case, Path] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        """Whether it has not failed so far."""
        return self.status == "ok"

    @contextmanager
    def turn(self) -> Iterator[Worker]:
        """Resumes its worker for the block and pauses it afterwards; an error fails the subject."""
        worker = self.worker
        assert worker is not None  # noqa: S101 it runs
        worker.resume()
        try:
            yield worker
            worker.pause()
        except EriError as error:
            self.fail(error)

    def fail(self, error: EriError) -> None:
        """Records why it failed, and ends its worker."""
        missing = error.got.startswith(MISSING) and not self.samples
        self.status = "missing" if missing else "failed"
        self.reason = error.got
        self.close()

    def close(self) -> None:
        """Ends its worker."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def to_subject(self) -> Subject:
        """Returns its part of the record."""
        opened, candidate = self.opened, self.candidate
        return Subject(
            name=candidate.name,
            kind=candidate.kind,
            precision=opened.get("precision", candidate.precision),
            status=self.status,
            words=opened.get("words", ""),
            reason=self.reason,
            open_s=self.open_s,
            first_s=self.first_s,
            build_s=self._build_s(),
            cold_s=tuple(self.cold_s),
            memory=self.memory,
            versions=opened.get("versions", {}),
        )

    def _build_s(self) -> float | None:
        """Returns the first call's seconds minus a later call's, for ways that compile."""
        later = next(iter(self.samples.values()), [])
        if "compile" not in self.candidate.variant or self.first_s is None or not later:
            return None
        median = float(np.median([figure(each, WHOLE) for each in later])) / 1e3
        return round(max(0.0, self.first_s - median), 3)


def worker_starter(plan: Plan, env: Mapping[str, str]) -> StartWorker:
    """Returns a function that starts a candidate's worker in the environment `env`."""

    def start(candidate: Candidate) -> Worker:
        if candidate.module is None:
            got = "ModuleNotFoundError: no worker of this kind is installed"
            fix = install_hint("export")
            raise WorkerError(candidate.name, got=f"{got}; {fix}", expected="a worker")
        return Worker(candidate.name, candidate.module, env, plan.timeout, candidate.python)

    return start


def setup_of(plan: Plan, candidate: Candidate, folder: Path) -> dict[str, Any]:
    """Returns the fields of the `Setup` that a worker opens; `folder` is that of the run."""
    return asdict(
        Setup(
            variant=candidate.variant,
            bundle=str(plan.bundle),
            checkpoint=None if plan.checkpoint is None else str(plan.checkpoint),
            threads=plan.workload.threads,
            device=plan.workload.device,
            folder=str(folder),
        )
    )


def convert(subject: MeasuredSubject, start: StartWorker, setup: Mapping[str, Any]) -> None:
    """Lets a peer convert the checkpoint to its own format, in a process of its own."""
    try:
        with start(subject.candidate) as worker:
            if worker.ask("convert", setup=setup):
                subject.convert_s = round(worker.age, 1)
    except EriError as error:
        subject.fail(error)


def start_subject(
    subject: MeasuredSubject, start: StartWorker, setup: Mapping[str, Any], job: Job
) -> None:
    """Starts a subject and runs its first two calls, while its memory is sampled."""
    try:
        subject.worker = worker = start(subject.candidate)
        watch = Watch(worker.pid, worker.started)
        try:
            subject.opened = worker.ask("open", setup=setup)
            subject.open_s = round(worker.age - subject.opened["harness_s"], 3)
            ready = round(worker.age, 3)
            draw(worker, job)
            drawn = round(worker.age, 3)
            subject.first_s = round(drawn - ready, 3)
            draw(worker, job)
            events = {"open": ready, "first": drawn, "second": round(worker.age, 3)}
        finally:
            timeline = watch.stop()
        subject.memory = Memory(peak=None, peak_all=worker.peak, timeline=timeline, events=events)
        worker.pause()
    except EriError as error:
        subject.fail(error)


def cold_start(
    subject: MeasuredSubject, start: StartWorker, setup: Mapping[str, Any], job: Job
) -> tuple[float, int | None]:
    """Returns the seconds from starting a process to its first saved image, and its peak bytes."""
    with start(subject.candidate) as worker:
        opened = worker.ask("open", setup=setup)
        draw(worker, job)
        return round(worker.age - opened["harness_s"], 4), worker.peak


def draw(worker: Worker, job: Job) -> Sample:
    """Runs a timed call and returns its times."""
    times = worker.ask("draw", job=asdict(job))
    return Sample(**{**times, "steps": tuple(times["steps"])})


def job_maker(plan: Plan, folder: Path) -> Callable[..., Job]:
    """Returns a function that makes the plan's jobs: `(size, case, output, steps=None)`."""
    work = plan.workload

    def make(size: Size, case: int, output: Path | None, steps: int | None = None) -> Job:
        prompt, seed = work.cases[case]
        return Job(
            prompt=prompt,
            seed=seed,
            images=work.images,
            width=size[0],
            height=size[1],
            steps=work.steps if steps is None else steps,
            guidance=work.guidance,
            tokens=work.tokens,
            latents=str(latents_file(folder, size, case)),
            output=None if output is None else str(output),
        )

    return make


def latents_file(folder: Path, size: Size, case: int) -> Path:
    """Returns the file of a case's initial noise."""
    return folder / f"latents-{size[0]}x{size[1]}-{case}.npy"
