"""What an export tells of itself while it runs: one small event, and a listener that times it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Stage = Literal["trace", "write", "compare", "build", "publish"]

WHOLE = "bundle"  # the component of "publish"


@dataclass(frozen=True)
class Progress:
    """`done` of `total` of a component's stage are over: bytes of "write", else 0 or 1 of 1.

    A stage is told of when it begins, as 0, and when it is over; "write" in between too.
    """

    component: str
    stage: Stage
    done: int
    total: int


Listener = Callable[[Progress], object]


def silent(_event: Progress) -> None:
    """The listener of a caller who does not want to know."""


@contextlib.contextmanager
def stage(
    tell: Listener, component: str, name: Stage, total: int = 1
) -> Iterator[Callable[[int], None]]:
    """Tell of the stage that the block is; gives a function to call with how much more is done."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if done < total:  # a file's header is more than was said; only the end tells of the end
            tell(Progress(component, name, done, total))

    tell(Progress(component, name, 0, total))
    yield advance
    tell(Progress(component, name, total, total))


class Stopwatch:
    """A listener that keeps the seconds of each stage, and hands each event on.

    They are kept here and not in the bundle, which is the same bytes whenever it is built.
    """

    def __init__(self, then: Listener = silent) -> None:
        self.seconds: dict[tuple[str, Stage], float] = {}
        self._then = then
        self._begun: dict[tuple[str, Stage], float] = {}

    def __call__(self, event: Progress) -> None:
        """Hear of an event."""
        key, now = (event.component, event.stage), time.perf_counter()
        self.seconds[key] = now - self._begun.setdefault(key, now)
        self._then(event)

    def of(self, name: Stage) -> float:
        """Seconds of a stage, of all components together."""
        return sum(seconds for (_, each), seconds in self.seconds.items() if each == name)
