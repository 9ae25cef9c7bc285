"""Seconds of a step and of a whole trajectory, the subjects taking turns within a round.

Each subject is opened and compared before it is timed: a row without its parity is none. Times are
of a synchronised wall clock, as every loop reads one number back from the device in each step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

import eri_runtime as eri
from benchmarks.gpu.parity import RUNS, failure, final, reference_of, verdict
from benchmarks.gpu.settings import WARM_STEPS, Case, Settings
from benchmarks.gpu.subjects import begin, pipeline, subjects_of, words

LEAST_ROUNDS = 3
PERCENTILES = (50, 10, 90)


def time_all(settings: Settings, case: Case, _subject: str) -> Iterator[dict[str, Any]]:
    """A row for each subject, failed ones too."""
    reference = reference_of(case)
    with pipeline(settings, case, reference) as pipe:
        expected = final(pipe, settings.steps)
    with ExitStack() as stack:
        pipes: dict[str, eri.Pipeline] = {}
        parity: dict[str, dict[str, Any]] = {}
        for subject in subjects_of(settings):
            try:
                with ExitStack() as opening:
                    pipe = opening.enter_context(pipeline(settings, case, subject))
                    latents = [final(pipe, settings.steps) for _ in range(RUNS)][-1]
                    found = verdict(latents, expected, "trajectory", case)
                    stack.push(opening.pop_all())
            except Exception as error:  # one that is missing or out of memory: the others go on
                yield failure(subject, error)
                continue
            pipes[subject] = pipe
            parity[subject] = {"against": reference, **found}
        times, broken = in_turn(pipes, settings)
        yield from broken
    for subject, (steps, wholes) in times.items():
        if wholes:
            yield {
                "subject": subject,
                "parity": parity[subject],
                "counts": parity[subject]["passed"],
                "steps": settings.steps,
                "step_ms": spread(steps),
                "total_ms": spread(wholes),
            }


Times = tuple[list[float], list[float]]  # milliseconds: of every step, of every trajectory


def in_turn(
    pipes: Mapping[str, eri.Pipeline], settings: Settings
) -> tuple[dict[str, Times], list[dict[str, Any]]]:
    """The times of every subject, and the rows of those that failed on the way."""
    running, broken = dict(pipes), list[dict[str, Any]]()
    times: dict[str, Times] = {name: ([], []) for name in pipes}
    end = time.perf_counter() + settings.seconds
    for done in range(settings.rounds):
        for subject in list(running):
            try:
                list(begin(running[subject], WARM_STEPS))  # another has had the device's clock
                steps, whole = timed(running[subject], settings.steps)
            except Exception as error:
                broken.append(failure(subject, error))
                times.pop(subject)
                running.pop(subject)
                continue
            times[subject][0].extend(steps)
            times[subject][1].append(whole)
        if done + 1 >= LEAST_ROUNDS and time.perf_counter() > end:
            break
    return times, broken


def timed(pipe: eri.Pipeline, steps: int) -> tuple[list[float], float]:
    """Milliseconds of every step but the first, which binds, and of it all to the latents."""
    request = pipe.request(**words(pipe.bundle, steps))
    stamps = [time.perf_counter()]
    last = None
    for step in pipe.denoise(request):
        stamps.append(time.perf_counter())
        last = step
    _ = None if last is None else last.x
    whole = time.perf_counter() - stamps[0]
    return [1e3 * float(each) for each in np.diff(stamps)[1:]], 1e3 * whole


def spread(values: list[float]) -> dict[str, float | int]:
    """The median, the 10th and the 90th percentile."""
    median, low, high = (round(float(each), 4) for each in np.percentile(values, PERCENTILES))
    return {"median": median, "low": low, "high": high, "samples": len(values)}
