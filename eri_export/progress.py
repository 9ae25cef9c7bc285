"""Progress events of an export, and a listener that times its stages."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Stage = Literal["trace", "write", "compare", "build", "publish"]

WHOLE = "bundle"  # the component named by events of the stage "publish"


@dataclass(frozen=True)
class Progress:
    """An event of an export: how much of a component's stage is done.

    Every stage sends an event with `done=0` when it starts and one with `done=total` when it ends.
    "write" and "build" send events in between as well.

    Attributes:
        component: The component's name, such as "denoiser"; "bundle" for the stage "publish".
        stage: "trace", "write", "compare", "build" or "publish".
        done: Bytes written for "write", steps of the engine's builder for "build", else 0 or 1.
        total: What `done` counts up to.
    """

    component: str
    stage: Stage
    done: int
    total: int


Listener = Callable[[Progress], object]


def silent(_event: Progress) -> None:
    """Ignores the event: the default listener."""


@contextlib.contextmanager
def stage(
    listener: Listener, component: str, name: Stage, total: int = 1
) -> Iterator[Callable[[int], None]]:
    """Reports the block as a stage; yields a function that adds to the amount done."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        # `total` leaves out a file's header, so `done` can pass it; only the end reports the end
        if done < total:
            listener(Progress(component, name, done, total))

    listener(Progress(component, name, 0, total))
    yield advance
    listener(Progress(component, name, total, total))


class Stopwatch:
    """A progress listener that times each stage and passes the events on.

    The times are not stored in the bundle, whose bytes do not depend on when it was built.

    Args:
        then: A listener to pass every event on to; default: none.

    Attributes:
        seconds: Seconds by (component, stage), from the stage's first event to its latest.

    Example:
        >>> from eri_export import Progress, Stopwatch
        >>> watch = Stopwatch()
        >>> watch(Progress("denoiser", "trace", 0, 1))
        >>> watch(Progress("denoiser", "trace", 1, 1))
        >>> watch.of("trace") == watch.seconds["denoiser", "trace"]
        True
    """

    def __init__(self, then: Listener = silent) -> None:
        self.seconds: dict[tuple[str, Stage], float] = {}
        self._then = then
        self._started: dict[tuple[str, Stage], float] = {}

    def __call__(self, event: Progress) -> None:
        """Records the time of an event and passes it on.

        Args:
            event: The event to record.
        """
        key, now = (event.component, event.stage), time.perf_counter()
        self.seconds[key] = now - self._started.setdefault(key, now)
        self._then(event)

    def of(self, name: Stage) -> float:
        """Sums the seconds of one stage over all components.

        Args:
            name: "trace", "write", "compare", "build" or "publish".

        Returns:
            Seconds; 0 for a stage without events.
        """
        return sum(seconds for (_, stage), seconds in self.seconds.items() if stage == name)
