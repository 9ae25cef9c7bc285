"""A subject that is being measured: its worker, what it has given so far, and how it failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eri_runtime.bench.plan import Candidate, Plan
from eri_runtime.bench.protocol import Worker
from eri_runtime.bench.record import Memory, Sample, Status, Subject
from eri_runtime.bench.serve import Job, Setup
from eri_runtime.bench.statistics import WHOLE, figure
from eri_runtime.bench.watch import Watch
from eri_runtime.errors import EriError, WorkerError

MISSING = ("BackendError", "ModuleNotFoundError", "ImportError")  # what a worker says of those
Size = tuple[int, int]
Case = tuple[Size, int]  # a size, and which of the workload's cases
Open = Callable[[Candidate], Worker]


@dataclass
class Live:
    """One subject's state; `files` are the pictures it wrote, by case."""

    candidate: Candidate
    worker: Worker | None = None
    status: Status = "ok"
    reason: str | None = None
    opened: Mapping[str, Any] = field(default_factory=dict)
    open_s: float | None = None
    first_s: float | None = None
    cold_s: list[float] = field(default_factory=list)
    memory: Memory | None = None
    samples: dict[Size, list[Sample]] = field(default_factory=dict)
    files: dict[Case, Path] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        """Whether it can be asked."""
        return self.status == "ok"

    @contextmanager
    def turn(self) -> Iterator[Worker]:
        """Its worker while it works; the others are paused. A failure ends the subject's part."""
        worker = self.worker
        assert worker is not None  # noqa: S101 it runs
        worker.resume()
        try:
            yield worker
            worker.pause()
        except EriError as error:
            self.fail(error)

    def fail(self, error: EriError) -> None:
        """Note why, and let its worker go."""
        said = error.got
        self.status = "missing" if said.startswith(MISSING) and not self.samples else "failed"
        self.reason = said
        self.close()

    def close(self) -> None:
        """End its worker."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def subject(self) -> Subject:
        """What is recorded of it."""
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
        """Of what is compiled in the first call: its seconds less those of a later one."""
        later = next(iter(self.samples.values()), [])
        if "compile" not in self.candidate.variant or self.first_s is None or not later:
            return None
        median = float(np.median([figure(each, WHOLE) for each in later])) / 1e3
        return round(max(0.0, self.first_s - median), 3)


def opener(plan: Plan, env: Mapping[str, str]) -> Open:
    """Starts the worker of a candidate."""

    def start(candidate: Candidate) -> Worker:
        if candidate.module is None:
            got = "ModuleNotFoundError: no worker of this kind is installed"
            fix = "pip install 'eri-diffusion[export]'"
            raise WorkerError(candidate.name, got=f"{got}; {fix}", expected="a worker")
        return Worker(candidate.name, candidate.module, env, plan.timeout)

    return start


def setup_of(plan: Plan, candidate: Candidate) -> dict[str, Any]:
    """What a worker is told to open."""
    return asdict(
        Setup(
            variant=candidate.variant,
            bundle=str(plan.bundle),
            checkpoint=None if plan.checkpoint is None else str(plan.checkpoint),
            threads=plan.workload.threads,
            device=plan.workload.device,
        )
    )


def begin(live: Live, plan: Plan, start: Open, job: Job) -> None:
    """Start a subject, open it, and let it draw its first picture, looked at all the while."""
    try:
        live.worker = worker = start(live.candidate)
        watch = Watch(worker.pid, worker.begun)
        try:
            live.opened = worker.ask("open", setup=setup_of(plan, live.candidate))
            live.open_s = round(worker.age - live.opened["harness_s"], 3)
            ready = round(worker.age, 3)
            draw(worker, job)
            drawn = round(worker.age, 3)
            live.first_s = round(drawn - ready, 3)
            draw(worker, job)
            events = {"open": ready, "first": drawn, "second": round(worker.age, 3)}
        finally:
            timeline = watch.stop()
        live.memory = Memory(peak=None, peak_all=worker.peak, timeline=timeline, events=events)
        worker.pause()
    except EriError as error:
        live.fail(error)


def cold(live: Live, plan: Plan, start: Open, job: Job) -> tuple[float, int | None]:
    """Seconds from the start of a fresh process to its first picture written, and its peak."""
    with start(live.candidate) as worker:
        opened = worker.ask("open", setup=setup_of(plan, live.candidate))
        draw(worker, job)
        return round(worker.age - opened["harness_s"], 4), worker.peak


def draw(worker: Worker, job: Job) -> Sample:
    """A timed call."""
    found = worker.ask("draw", job=asdict(job))
    return Sample(**{**found, "steps": tuple(found["steps"])})


def job_maker(plan: Plan, folder: Path) -> Callable[..., Job]:
    """Jobs of the plan's work: `(size, case, output=…, steps=…)`."""
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
    """Where the initial noise of a case lies."""
    return folder / f"latents-{size[0]}x{size[1]}-{case}.npy"
