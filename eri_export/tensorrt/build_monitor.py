"""Progress of a build; the same callbacks let Ctrl-C and SIGTERM cancel it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Monitor(Protocol):
    """A monitor; `interrupt` is the exception to raise once the builder has returned."""

    interrupt: BaseException | None


def make_monitor(module: Any, advance: Callable[[int, int], object]) -> Any:
    """Returns a monitor that reports the steps of all phases and cancels an interrupted build.

    Python's signal handlers run inside its callbacks. An exception of theirs must not propagate
    through the C++ builder, so the monitor keeps it.
    """

    class _Monitor(module.IProgressMonitor):  # type: ignore[misc]  # a class of an untyped module
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
