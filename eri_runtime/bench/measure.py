"""Runs a benchmark: opens every subject, compares images, times rounds and cold starts."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eri_runtime.bench import environment
from eri_runtime.bench.measured_subject import (
    Case,
    MeasuredSubject,
    cold_start,
    convert,
    draw,
    job_maker,
    latents_file,
    setup_of,
    start_subject,
    worker_starter,
)
from eri_runtime.bench.plan import Plan, reference_of
from eri_runtime.bench.record import Build, Memory, Record
from eri_runtime.bench.rows import make_rows, pictures_of
from eri_runtime.bench.worker_server import png_files
from eri_runtime.bundle import read_bundle
from eri_runtime.errors import EriError
from eri_runtime.latents import latent_shape
from eri_runtime.sampling import TorchNoise, image_seeds
from eri_runtime.unfinished import temporary_folder

Tell = Callable[[str], object]


def measure(plan: Plan, builds: Sequence[Build] = (), tell: Tell = lambda _: None) -> Record:
    """Runs a plan.

    A subject that fails costs only its own rows. All processes are ended before this returns.

    Args:
        plan: What to measure.
        builds: Builds that were timed before, for the record.
        tell: Called with a line of text before each piece of work.

    Returns:
        The record of the run.
    """
    machine, software = environment.machine(), environment.software()
    reference = reference_of(plan.candidates)
    with temporary_folder("eri-bench-") as folder:
        bench = Bench(plan, folder, tell)
        with bench.open() as subjects:
            bench.draw_cases(subjects)
            bench.time(subjects)
        bench.start_cold(subjects)
        rows = make_rows(plan, subjects, reference)
        pictures = pictures_of(plan, subjects, reference)
    return Record(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=plan.command,
        machine=replace(machine, load_after=environment.load()),
        software=software,
        workload=plan.workload,
        reference=reference,
        subjects=tuple(each.to_subject() for each in subjects),
        rows=rows,
        builds=(*builds, *compiled(subjects)),
        pictures=pictures,
    )


def compiled(subjects: Sequence[MeasuredSubject]) -> Iterator[Build]:
    """Yields the peers' conversions, and the compilations that took place in a first call."""
    for each in subjects:
        if each.convert_s is not None:
            yield Build(name=f"{each.candidate.name}, conversion", seconds=each.convert_s)
        if (seconds := each.to_subject().build_s) is not None:
            yield Build(name=each.candidate.name, seconds=seconds)


class Bench:
    """The stages of a run, with a folder for its noise and images."""

    def __init__(self, plan: Plan, folder: Path, tell: Tell) -> None:
        self._plan, self._folder, self._tell = plan, folder, tell
        self._work, self._job = plan.workload, job_maker(plan, folder)
        threads = str(plan.workload.threads)
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        pools = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        quiet = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._start = worker_starter(plan, {**caches, **pools, **quiet})
        self._write_latents()

    @contextmanager
    def open(self) -> Iterator[list[MeasuredSubject]]:
        """Starts the subjects one after the other and pauses them; ends them on exit."""
        with ExitStack() as stack:
            subjects = [MeasuredSubject(each) for each in self._plan.candidates]
            for each in subjects:
                self._tell(f"opening {each.candidate.name}")
                stack.callback(each.close)
                self._begin(each)
            yield subjects

    def draw_cases(self, subjects: Sequence[MeasuredSubject]) -> None:
        """Draws the images that are compared, which also warms up every size."""
        for case in self._cases()[1:]:
            for each in filter(lambda subject: subject.runs, subjects):
                self._tell(f"drawing {each.candidate.name}, case {case[1] + 1}")
                job = self._job(*case, self._file(each, case))
                with each.turn() as worker:
                    draw(worker, job)
                    each.files[case] = png_files(str(job.output), job.images)[0]

    def time(self, subjects: Sequence[MeasuredSubject]) -> None:
        """Times rounds of one call per subject and size, starting each with the next subject."""
        for number in range(self._work.rounds):
            first = number % len(subjects)
            order = [*subjects[first:], *subjects[:first]]
            for size in self._work.sizes:
                warm = self._job(size, 0, None, self._work.warm_steps)
                for each in filter(lambda subject: subject.runs, order):
                    self._tell(f"round {number + 1}/{self._work.rounds} {each.candidate.name}")
                    with each.turn() as worker:
                        if self._work.warm_steps:
                            draw(worker, warm)
                        file = self._folder / f"{subjects.index(each)}-timed.png"
                        sample = draw(worker, self._job(size, 0, file))
                        each.samples.setdefault(size, []).append(sample)
        for each in filter(lambda subject: subject.runs, subjects):
            assert each.worker is not None  # noqa: S101 it runs
            memory = each.memory or Memory(peak=None, peak_all=None)
            each.memory = replace(memory, peak_all=each.worker.peak)

    def start_cold(self, subjects: Sequence[MeasuredSubject]) -> None:
        """Times cold starts: fresh processes, one at a time, subjects in turns."""
        for number in range(self._work.cold_rounds):
            for each in filter(lambda subject: subject.runs, subjects):
                self._tell(
                    f"cold start {number + 1}/{self._work.cold_rounds} {each.candidate.name}"
                )
                output = self._folder / f"{subjects.index(each)}-cold.png"
                job = self._job(self._work.sizes[0], 0, output, self._work.cold_steps)
                try:
                    seconds, peak = cold_start(each, self._start, self._setup(each), job)
                except EriError as error:
                    each.fail(error)
                    continue
                each.cold_s.append(seconds)
                memory = each.memory or Memory(peak=None, peak_all=None)
                each.memory = replace(memory, peak=max(peak or 0, memory.peak or 0) or None)

    def _cases(self) -> list[Case]:
        """Returns every case at every size."""
        return [(size, case) for size in self._work.sizes for case in range(len(self._work.cases))]

    def _begin(self, subject: MeasuredSubject) -> None:
        """Starts a subject and draws its first case."""
        case = self._cases()[0]
        job = self._job(*case, self._file(subject, case))
        if subject.candidate.kind == "peer":
            convert(subject, self._start, self._setup(subject))
        if subject.runs:
            start_subject(subject, self._start, self._setup(subject), job)
        if subject.runs:
            subject.files[case] = png_files(str(job.output), job.images)[0]
        else:
            self._tell(f"{subject.candidate.name}: {subject.reason}")

    def _setup(self, subject: MeasuredSubject) -> dict[str, Any]:
        """Returns what a subject's worker opens."""
        return setup_of(self._plan, subject.candidate, self._folder)

    def _file(self, subject: MeasuredSubject, case: Case) -> Path:
        """Returns the file of a subject's image of a case."""
        (width, height), number = case
        name = subject.candidate.name.replace("/", "-").replace(":", "-")
        return self._folder / f"{name}-{width}x{height}-{number}.png"

    def _write_latents(self) -> None:
        """Writes each case's unit noise, the same for all subjects, as diffusers draws it."""
        spec = read_bundle(self._plan.bundle).latents
        for size, case in self._cases():
            seeds = image_seeds(self._work.cases[case][1], self._work.images)
            shape = latent_shape(spec, size[1], size[0])
            np.save(latents_file(self._folder, size, case), TorchNoise(seeds)(0, shape))
