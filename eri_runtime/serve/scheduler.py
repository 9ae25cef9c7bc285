"""Runs the requests of one worker, a step of many at a time.

Steps are made in this thread. Prompts are encoded and pictures decoded in two others. Steps wait
for these for a moment, because engines that share cores slow each other down, but not for a whole
large picture. Requests join and leave between steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

from eri_runtime.errors import EriError, ServingError
from eri_runtime.loop import Step
from eri_runtime.request import takes_lora_inputs
from eri_runtime.serve.job import Job
from eri_runtime.serve.messages import Progress
from eri_runtime.serve.observer import StepTime
from eri_runtime.serve.open_bundles import OpenBundles
from eri_runtime.serve.protocol import Began, Failed, FromWorker, Happened, Run
from eri_runtime.serve.step_costs import StepCosts
from eri_runtime.serve.step_reports import StepReports
from eri_runtime.serve.turns import next_step

T = TypeVar("T")
log = logging.getLogger(__name__)
Send = Callable[[FromWorker], None]
IDLE = 1.0  # seconds to wait for a message if there is nothing to do
PATIENCE = 0.05  # seconds that steps leave the cores to a prompt or a picture


class Scheduler:
    """Runs requests, and sends what happens to them.

    Args:
        bundles: The bundles.
        running: Most requests in progress; others wait in the order they came.
        send: Sends a message. Called from several threads.
        wake: Called when a thread has finished something for `advance`.
    """

    def __init__(
        self, bundles: OpenBundles, running: int, send: Send, wake: Callable[[], None]
    ) -> None:
        self._bundles, self._running, self._send, self._wake = bundles, running, send, wake
        self._waiting: dict[str, Run] = {}
        self._jobs: dict[str, Job] = {}
        self._costs, self._calls = StepCosts(), 0
        self._reports = StepReports(send)
        self._encoding = ThreadPoolExecutor(1, "eri-encoding")
        self._decoding = ThreadPoolExecutor(1, "eri-decoding")
        self._beside = set[Future[Any]]()  # work of the other threads, begun or not
        self._since: dict[object, float] = {}  # when it was begun
        self._stepped = 0.0  # when the last step was made

    def open(self, models: Iterable[str]) -> None:
        """Opens bundles, and the denoiser and VAE of the first in the background.

        Raises `BackendError` if the engine cannot run one of them.
        """
        for number, model in enumerate(models):
            pipe = self._bundles.get(model, ()).pipe
            if not number:
                with suppress(EriError):  # such as one without text encoders
                    pipe.prepare(pipe.request(""))

    def add(self, run: Run) -> None:
        """Takes a request."""
        self._waiting[run.id] = run

    def cancel(self, id_: str) -> None:
        """Forgets a request; does nothing if there is none of this name."""
        self._waiting.pop(id_, None)
        self._forget(id_)

    def advance(self) -> float:
        """Does what can be done at once, at most one step.

        Returns for how many seconds there is nothing more to do, unless a message comes.
        """
        self._collect()
        self._admit()
        self._merge()
        self._encode()
        ready = [each for each in self._present() if each.steps]
        if not ready:
            self._reports.flush()
            return IDLE
        patience = self._stepped + PATIENCE - perf_counter()
        if self._beside and patience > 0:
            return patience
        self._step(next_step(ready, self._costs, perf_counter()))
        self._stepped = perf_counter()
        return 0.0

    def oldest(self) -> float:
        """Returns for how many seconds the other threads have been at the same work."""
        now = perf_counter()
        return max((now - since for since in list(self._since.values())), default=0.0)

    def close(self) -> None:
        """Forgets all requests and closes the bundles."""
        self._waiting.clear()
        for id_ in list(self._jobs):
            self._forget(id_)
        for pool in (self._encoding, self._decoding):
            pool.shutdown(wait=True, cancel_futures=True)
        self._bundles.close()

    def _admit(self) -> None:
        """Opens the bundles of the requests whose turn has come."""
        while self._waiting and len(self._jobs) < self._running:
            run = self._waiting.pop(next(iter(self._waiting)))
            try:
                used = {each.run.request.model for each in self._jobs.values()}
                opened = self._bundles.get(run.request.model, used)
            except Exception as error:
                self._fail(run.id, error)
                continue
            inputs = takes_lora_inputs(opened.pipe.bundle)
            merged = () if inputs else tuple(sorted(run.request.loras.items()))
            self._jobs[run.id] = Job(run, opened, merged)
            self._send(Began(run.id))

    def _merge(self) -> None:
        """Merges the LoRAs that others wait for, once the present ones have had their time."""
        for opened in {id(each.opened): each.opened for each in self._jobs.values()}.values():
            undone = [
                each
                for each in self._jobs.values()
                if each.opened is opened and each.finishing is None
            ]
            others = [each for each in undone if each.merged != opened.merged]
            present = [each for each in undone if each.merged == opened.merged]
            busy = any(each.beginning is not None and each.generation is None for each in present)
            if not others or busy or (present and not opened.settled):
                continue
            next_ = min(others, key=lambda each: each.turn).merged
            try:
                opened.merge(next_)
            except Exception as error:
                for each in others:
                    if each.merged == next_:
                        self._fail(each.run.id, error)

    def _present(self) -> list[Job]:
        """Returns the requests whose LoRAs are in the weights, or that need none."""
        return [each for each in self._jobs.values() if each.merged == each.opened.merged]

    def _encode(self) -> None:
        """Starts to encode the prompts of the requests that can begin."""
        for job in self._present():
            if job.beginning is None:
                job.beginning = self._start(self._encoding, job.begin)

    def _collect(self) -> None:
        """Takes over what the other threads have finished."""
        for id_, job in list(self._jobs.items()):
            try:
                if job.finishing is not None and job.finishing.done():
                    pictures = job.finishing.result()
                    self._reports.flush()
                    self._send(Happened(id_, pictures))
                    self._forget(id_)
                elif job.generation is None and job.beginning is not None and job.beginning.done():
                    job.generation = job.beginning.result()
                    self._decode_if_done(job)
            except Exception as error:
                self._fail(id_, error)

    def _step(self, batch: Sequence[Job]) -> None:
        """Makes a step of requests together."""
        self._calls += 1
        group, rows = batch[0].group, sum(each.rows for each in batch)
        started = perf_counter()
        outcomes = _outcomes(batch)
        seconds = perf_counter() - started
        self._costs.made(group, rows, seconds)
        for outcome in outcomes:
            outcome.job.turn = self._calls
        made = {each.job: each.step for each in outcomes if not isinstance(each.step, Exception)}
        told = {job.run.id: _progress(step) for job, step in made.items() if not job.shows(step)}
        self._reports.add(_step_time(outcomes, seconds), told)
        for outcome in outcomes:
            if isinstance(outcome.step, Exception):
                self._fail(outcome.job.run.id, outcome.step)
        for job, step in made.items():
            if job.shows(step):
                self._start(self._decoding, partial(self._show, job, step))
            self._decode_if_done(job)

    def _decode_if_done(self, job: Job) -> None:
        if job.generation is not None and job.generation.done:
            job.finishing = self._start(self._decoding, job.finish)

    def _show(self, job: Job, step: Step) -> None:
        """Sends a step with its preview; one that cannot be made is left out."""
        try:
            images = job.preview(step)
        except Exception as error:
            log.warning("a preview was left out: %s", error)
            images = ()
        self._send(Happened(job.run.id, _progress(step, images)))

    def _start(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> Future[T]:
        """Starts work in another thread."""
        key = object()

        def timed() -> T:
            self._since[key] = perf_counter()
            try:
                return work()
            finally:
                del self._since[key]

        future = pool.submit(timed)
        self._beside.add(future)
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[Any]) -> None:
        self._beside.discard(future)
        self._wake()

    def _fail(self, id_: str, error: Exception) -> None:
        """Ends a request with its error, as one that can be sent."""
        if not isinstance(error, EriError):
            text = f"{type(error).__name__}: {error}"
            error = ServingError(f"request {id_}", got=text, expected="pictures")
        self._reports.flush()
        self._send(Failed(id_, error))
        self._forget(id_)

    def _forget(self, id_: str) -> None:
        job = self._jobs.pop(id_, None)
        for future in (job.beginning, job.finishing) if job is not None else ():
            if future is not None:
                future.cancel()


@dataclass(frozen=True, eq=False)
class _Outcome:
    """A request of a step, the rows of the denoiser's batch that it took, and what came of it."""

    job: Job
    rows: int
    step: Step | Exception


def _progress(step: Step, images: Sequence[Any] = ()) -> Progress:
    """Returns a step as its client sees it."""
    return Progress(step=step.index + 1, total=step.total, images=images)


def _step_time(outcomes: Sequence[_Outcome], seconds: float) -> StepTime:
    """Returns what there is to tell of a step that took so many seconds."""
    first = outcomes[0].job
    request = first.stepping.request
    return StepTime(
        model=first.run.request.model,
        width=request.width,
        height=request.height,
        requests=len(outcomes),
        rows=sum(each.rows for each in outcomes),
        seconds=seconds,
    )


def _outcomes(batch: Sequence[Job]) -> list[_Outcome]:
    """Makes a step of all requests together; if that fails, of each alone."""
    rows = [each.rows for each in batch]
    try:
        steps = batch[0].opened.pipe.step([each.stepping for each in batch])
    except Exception as error:
        if len(batch) == 1:
            steps = [error]
        else:
            steps = [outcome.step for each in batch for outcome in _outcomes([each])]
    return [_Outcome(*each) for each in zip(batch, rows, steps, strict=True)]
