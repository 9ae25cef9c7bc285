"""Reports of steps, several in one message: waking the engine costs more than a small step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

from eri_runtime.serve.messages import Progress
from eri_runtime.serve.observer import StepTime
from eri_runtime.serve.protocol import FromWorker, Stepped

TOGETHER = 0.05  # seconds whose steps are reported together


class StepReports:
    """Collects what there is to tell of steps, and sends it now and then.

    Args:
        send: Sends a message.
    """

    def __init__(self, send: Callable[[FromWorker], None]) -> None:
        self._send, self._sent = send, perf_counter()
        self._times: list[StepTime] = []
        self._progress: list[tuple[str, Progress]] = []

    def add(self, time: StepTime, progress: Mapping[str, Progress]) -> None:
        """Adds a step, and how far its requests are by id."""
        self._times.append(time)
        self._progress += progress.items()
        if perf_counter() - self._sent >= TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Sends what was added. Call it before anything that must come after the steps."""
        if self._times:
            self._send(Stepped(tuple(self._times), tuple(self._progress)))
            self._times, self._progress = [], []
        self._sent = perf_counter()
