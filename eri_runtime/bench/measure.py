"""A run: every subject opened, compared, timed in turns, started cold; then the record of it."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from eri_runtime.bench import environment
from eri_runtime.bench.compared import pictures_of, rows_of
from eri_runtime.bench.live import (
    Case,
    Live,
    begin,
    cold,
    draw,
    job_maker,
    latents_file,
    opener,
)
from eri_runtime.bench.plan import Plan, reference_of
from eri_runtime.bench.record import Build, Memory, Record
from eri_runtime.bench.serve import png_files
from eri_runtime.errors import EriError
from eri_runtime.latents import latent_shape
from eri_runtime.manifest import read as read_bundle
from eri_runtime.noise import TorchNoise, image_seeds

Tell = Callable[[str], object]


def measure(plan: Plan, builds: Sequence[Build] = (), tell: Tell = lambda _: None) -> Record:
    """Do a plan. A subject that fails costs its own rows; every process is ended at the end."""
    machine, software = environment.machine(), environment.software()
    reference = reference_of(plan.candidates)
    with tempfile.TemporaryDirectory(prefix="eri-bench-") as name:
        bench = Bench(plan, Path(name), tell)
        with bench.open() as lives:
            bench.draw_cases(lives)
            bench.time(lives)
        bench.start_cold(lives)
        rows = rows_of(plan, lives, reference)
        pictures = pictures_of(plan, lives, reference)
    return Record(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=plan.command,
        machine=replace(machine, load_after=environment.load()),
        software=software,
        workload=plan.workload,
        reference=reference,
        subjects=tuple(each.subject() for each in lives),
        rows=rows,
        builds=(*builds, *compiled(lives)),
        pictures=pictures,
    )


def compiled(lives: Sequence[Live]) -> Iterator[Build]:
    """What was compiled in a first call."""
    for each in lives:
        if (seconds := each.subject().build_s) is not None:
            yield Build(name=each.candidate.name, seconds=seconds)


class Bench:
    """The parts of a run, over a folder for its noise and pictures."""

    def __init__(self, plan: Plan, folder: Path, tell: Tell) -> None:
        self._plan, self._folder, self._tell = plan, folder, tell
        self._work, self._job = plan.workload, job_maker(plan, folder)
        threads = str(plan.workload.threads)
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        pools = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        quiet = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._start = opener(plan, {**caches, **pools, **quiet})
        self._write_latents()

    @contextmanager
    def open(self) -> Iterator[list[Live]]:
        """Every subject, started one after the other and paused; ended on the way out."""
        with ExitStack() as stack:
            lives = [Live(each) for each in self._plan.candidates]
            for each in lives:
                self._tell(f"opening {each.candidate.name}")
                stack.callback(each.close)
                self._begin(each)
            yield lives

    def draw_cases(self, lives: Sequence[Live]) -> None:
        """The pictures that are compared, which warm every size up."""
        for case in self._cases()[1:]:
            for each in filter(lambda live: live.runs, lives):
                self._tell(f"drawing {each.candidate.name}, case {case[1] + 1}")
                job = self._job(*case, self._file(each, case))
                with each.turn() as worker:
                    draw(worker, job)
                    each.files[case] = png_files(str(job.output), job.images)[0]

    def time(self, lives: Sequence[Live]) -> None:
        """Timed rounds: each subject once, beginning with another each time, warmed up before."""
        for number in range(self._work.rounds):
            order = [*lives[number % len(lives) :], *lives[: number % len(lives)]]
            for size in self._work.sizes:
                warm = self._job(size, 0, None, self._work.warm_steps)
                for each in filter(lambda live: live.runs, order):
                    self._tell(f"round {number + 1}/{self._work.rounds} {each.candidate.name}")
                    with each.turn() as worker:
                        if self._work.warm_steps:
                            draw(worker, warm)
                        job = self._job(size, 0, self._folder / f"{lives.index(each)}-timed.png")
                        each.samples.setdefault(size, []).append(draw(worker, job))
        for each in filter(lambda live: live.runs, lives):
            assert each.worker is not None  # noqa: S101 it runs
            each.memory = replace(
                each.memory or Memory(peak=None, peak_all=None), peak_all=each.worker.peak
            )

    def start_cold(self, lives: Sequence[Live]) -> None:
        """Fresh processes, one at a time, in turns."""
        for number in range(self._work.cold_rounds):
            for each in filter(lambda live: live.runs, lives):
                self._tell(
                    f"cold start {number + 1}/{self._work.cold_rounds} {each.candidate.name}"
                )
                output = self._folder / f"{lives.index(each)}-cold.png"
                job = self._job(self._work.sizes[0], 0, output, self._work.cold_steps)
                try:
                    seconds, peak = cold(each, self._plan, self._start, job)
                except EriError as error:
                    each.fail(error)
                    continue
                each.cold_s.append(seconds)
                memory = each.memory or Memory(peak=None, peak_all=None)
                each.memory = replace(memory, peak=max(peak or 0, memory.peak or 0) or None)

    def _cases(self) -> list[Case]:
        return [(size, case) for size in self._work.sizes for case in range(len(self._work.cases))]

    def _begin(self, live: Live) -> None:
        """Start one, which draws the first case."""
        case = self._cases()[0]
        job = self._job(*case, self._file(live, case))
        begin(live, self._plan, self._start, job)
        if live.runs:
            live.files[case] = png_files(str(job.output), job.images)[0]
        else:
            self._tell(f"{live.candidate.name}: {live.reason}")

    def _file(self, live: Live, case: Case) -> Path:
        (width, height), number = case
        name = live.candidate.name.replace("/", "-").replace(":", "-")
        return self._folder / f"{name}-{width}x{height}-{number}.png"

    def _write_latents(self) -> None:
        """The same unit noise for all, as a seed gives it in diffusers."""
        spec = read_bundle(self._plan.bundle).latents
        for size, case in self._cases():
            seeds = image_seeds(self._work.cases[case][1], self._work.images)
            shape = latent_shape(spec, size[1], size[0])
            np.save(latents_file(self._folder, size, case), TorchNoise(seeds)(0, shape))
