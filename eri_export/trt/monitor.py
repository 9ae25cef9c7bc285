"""Progress of a build, which is also how Ctrl-C and SIGTERM reach it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Monitor(Protocol):
    """What interrupted a build, to be raised when the builder has returned."""

    interrupt: BaseException | None


def make_monitor(module: Any, advance: Callable[[int, int], object]) -> Any:
    """A monitor that tells of the steps of every phase, and cancels a build that is interrupted.

    Python's signal handlers run in its calls. What they raise must not pass through the builder,
    which is not written for it.
    """

    class _Monitor(module.IProgressMonitor):
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.interrupt: BaseException | None = None
            self.done = self.total = 0

        def phase_start(self, _phase: str, _parent: str, steps: int) -> None:
            self.total += steps

        def step_complete(self, _phase: str, _step: int) -> bool:
            try:
                self.done += 1
                advance(self.done, self.total)
            except BaseException as error:
                self.interrupt = self.interrupt or error
            return self.interrupt is None

        def phase_finish(self, _phase: str) -> None:
            pass

    return _Monitor()
