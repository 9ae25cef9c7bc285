"""Runs work in the memory mode of an attempt, and in the next one each time memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from eri_runtime.bundle import DENOISER
from eri_runtime.loop import Step
from eri_runtime.memory import Attempt, Mode

T = TypeVar("T")


def run_in_fitting_mode(attempt: Attempt, component: str, run: Callable[[Mode], T]) -> T:
    """Returns `run(mode)` for the first mode of the attempt that has enough memory.

    `component` is the component to blame if the error names none.

    Raises `OutOfMemoryError` if no mode has enough memory; other errors pass through.
    """
    while True:
        try:
            return run(attempt.mode)
        except Exception as error:
            attempt.next_mode(component, error)


def denoise_in_fitting_mode(
    attempt: Attempt,
    steps_after: Callable[[Step | None, Mode], Iterator[Step]],
    start: Step | None,
) -> Iterator[Step]:
    """Returns the steps after `start`, resumed in the next mode each time memory runs out.

    `steps_after(step, mode)` starts the loop. It is called for the first time at once, so it
    raises its errors before the first step.
    """

    def start_loop(last: Step | None) -> Iterator[Step]:
        return run_in_fitting_mode(attempt, DENOISER, lambda mode: steps_after(last, mode))

    return _resume_when_exhausted(attempt, start_loop, start_loop(start), start)


def _resume_when_exhausted(
    attempt: Attempt,
    start_loop: Callable[[Step | None], Iterator[Step]],
    steps: Iterator[Step],
    last: Step | None,
) -> Iterator[Step]:
    """Yields `steps`; if memory runs out, switches the mode and resumes after the last step."""
    while True:
        try:
            for step in steps:
                last = step
                yield step
            return
        except Exception as error:
            last = None if last is None else last.on_host()
            attempt.next_mode(DENOISER, error)
        steps = start_loop(last)
