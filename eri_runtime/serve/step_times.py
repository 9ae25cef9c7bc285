"""How long steps take, to say when there will be room again."""

from __future__ import annotations

from collections.abc import Sequence

from eri_runtime.serve.observer import StepTime

SMOOTHING = 0.1  # weight of the newest step
FIRST = 1.0  # seconds to wait before any step was timed


class StepTimes:
    """The mean time that one step of one request takes, however many share a call."""

    def __init__(self) -> None:
        self._mean: float | None = None

    def add(self, step: StepTime) -> None:
        """Notes a step."""
        each = step.seconds / step.requests
        before = each if self._mean is None else self._mean
        self._mean = before + SMOOTHING * (each - before)

    def until_free(self, undone: Sequence[int], workers: int) -> float:
        """Returns the seconds until one of the requests should end, at least a tenth.

        Args:
            undone: The steps that each request has yet to make.
            workers: Number of workers.
        """
        if self._mean is None or not undone:
            return FIRST
        # all of them advance together, so the shortest ends after as many steps of all
        together = sum(min(steps, min(undone)) for steps in undone)
        return max(0.1, self._mean * together / workers)
