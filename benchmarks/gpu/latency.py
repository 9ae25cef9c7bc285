"""Compares subjects with their reference, then times them; they take turns within a round.

Every latency has its parity beside it, the worst of all its trajectories, and counts only if that
passed. Times are wall time, synchronised because every loop reads one number back from the device
in each step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

import eri_runtime as eri
from benchmarks.gpu import parity
from benchmarks.gpu.memory import watched
from benchmarks.gpu.record import failure
from benchmarks.gpu.settings import WARM_STEPS, Model, Settings
from benchmarks.gpu.subjects import begin, parsed, pipeline, words

LEAST_ROUNDS = 3
PERCENTILES = {"median": 50, "low": 10, "high": 90, "p95": 95}
Rows = Iterator[dict[str, Any]]


@dataclass
class Opened:
    """An open subject, what is known of it, and its times in milliseconds."""

    pipe: eri.Pipeline
    parity: parity.Verdict
    device_mb: int | None
    steps: list[float]
    wholes: list[float]


def measure(settings: Settings, name: str, subjects: tuple[str, ...]) -> Rows:
    """Yields the rows of every subject of a model: parity of each trajectory, then latency."""
    model = settings.model(name)
    precision = model.bundle.components["denoiser"].precision
    expected = _expected(settings, model)
    about = {"against": model.reference, "precision": precision}
    opened: dict[str, Opened] = {}
    with ExitStack() as stack:
        for subject in subjects:
            try:
                with ExitStack() as opening:
                    with watched(settings.device) as memory:
                        pipe = opening.enter_context(pipeline(settings, model, subject))
                        list(begin(pipe, WARM_STEPS))
                    verdicts = []
                    for what, verdict in parity.compare(pipe, expected, precision):
                        verdicts.append(verdict)
                        yield {"part": "parity", "subject": subject, "what": what} | about | verdict
                    worst = {"against": model.reference, **parity.worst(verdicts)}
                    opened[subject] = Opened(pipe, worst, memory.peak_mb, [], [])
                    stack.push(opening.pop_all())
            except Exception as error:  # missing or out of memory: the others continue
                yield {"part": "latency", **failure(subject, error)}
                continue
            if parsed(subject)[1] == "numpy" and not model.networks:
                yield from _components(settings, model, pipe, subject)
        yield from in_turn(opened, settings)
    for subject, each in opened.items():
        if each.wholes:
            yield {
                "part": "latency",
                "subject": subject,
                "precision": precision,
                "parity": each.parity,
                "counts": each.parity["passed"],
                "steps": settings.steps,
                "step_ms": spread(each.steps),
                "total_ms": spread(each.wholes),
                "device_mb": each.device_mb,
            }


def _expected(settings: Settings, model: Model) -> parity.Expected:
    """Returns the reference's latents, from an earlier stage if one has made them."""
    if not model.expected.is_file():
        with pipeline(settings, model, model.reference) as pipe:
            parity.save(model, parity.expected_of(pipe, settings.steps))
    return parity.load(model)


def _components(settings: Settings, model: Model, pipe: eri.Pipeline, subject: str) -> Rows:
    """Yields a parity row for each component of a tiny bundle."""
    with pipeline(settings, model, model.reference) as reference:
        for name, spec in pipe.bundle.components.items():
            inputs = parity.drawn(spec)
            try:
                error = parity.output_error(pipe.run(name, inputs), reference.run(name, inputs))
            except Exception as problem:
                yield {"part": "parity", "what": name, **failure(subject, problem)}
                continue
            about = {"against": model.reference, "precision": spec.precision}
            judged = parity.verdict(error, "component", spec.precision)
            yield {"part": "parity", "subject": subject, "what": name, **about, **judged}


def in_turn(opened: Mapping[str, Opened], settings: Settings) -> Rows:
    """Times every subject in each round; yields the rows of those that failed meanwhile."""
    running = dict(opened)
    end = time.perf_counter() + settings.seconds
    for done in range(settings.rounds):
        for subject, each in list(running.items()):
            try:
                list(begin(each.pipe, WARM_STEPS))  # another subject ran before
                steps, whole = timed(each.pipe, settings.steps)
            except Exception as error:
                yield {"part": "latency", **failure(subject, error)}
                running.pop(subject).wholes.clear()
                continue
            each.steps.extend(steps)
            each.wholes.append(whole)
        if done + 1 >= LEAST_ROUNDS and time.perf_counter() > end:
            break


def timed(pipe: eri.Pipeline, steps: int) -> tuple[list[float], float]:
    """Returns the milliseconds of every step but the first, which binds, and of the whole."""
    request = pipe.request(**words(pipe.bundle, steps))
    stamps = [time.perf_counter()]
    last = None
    for step in pipe.denoise(request):
        stamps.append(time.perf_counter())
        last = step
    _ = None if last is None else last.x  # waits for the latents
    whole = time.perf_counter() - stamps[0]
    return [1e3 * float(each) for each in np.diff(stamps)[1:]], 1e3 * whole


def milliseconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns how long a call took, and its result."""
    started = time.perf_counter()
    result = work()
    return 1e3 * (time.perf_counter() - started), result


def spread(values: list[float]) -> dict[str, float | int]:
    """Returns the median and percentiles of at least one value."""
    found = np.percentile(values, list(PERCENTILES.values()))
    numbers = {name: round(float(each), 4) for name, each in zip(PERCENTILES, found, strict=True)}
    return {**numbers, "samples": len(values)}
