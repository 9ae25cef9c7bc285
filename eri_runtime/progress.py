"""Progress bars on standard error, for the command line; the library itself draws nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from eri_runtime.inspection import megabytes

if TYPE_CHECKING:
    from rich.progress import Progress

Unit = Literal["steps", "bytes"]


class Advance(Protocol):
    """Draws the bar `name` as `done` of `total`, and `doing`: what that counts."""

    def __call__(
        self, name: str, done: int, total: int, *, doing: str = "", unit: Unit = "steps"
    ) -> None: ...


@contextmanager
def progress_bars() -> Iterator[Advance]:
    """Give an `Advance`, whose every name gets a bar with the time since its first call.

    A bar may begin again with another total. What is not a terminal gets no bars.
    """
    with _progress() as bars:
        tasks = {}

        def advance(
            name: str, done: int, total: int, *, doing: str = "", unit: Unit = "steps"
        ) -> None:
            count = _count(done, total, unit)
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total, doing=doing, count=count)
            bars.update(tasks[name], completed=done, total=total, doing=doing, count=count)

        yield advance


def _count(done: int, total: int, unit: Unit) -> str:
    """`3/20`, `1.2 of 24.0 MB`; nothing of what is one piece."""
    if total == 1:
        return ""
    return f"{megabytes(done)} of {megabytes(total)}" if unit == "bytes" else f"{done}/{total}"


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed

    words = [TextColumn("{task.description}"), TextColumn("{task.fields[doing]}")]
    count = TextColumn("{task.fields[count]}", justify="right")
    console = Console(stderr=True)
    off = not sys.stderr.isatty()  # rich would also draw on a pipe where FORCE_COLOR is set
    return Progress(*words, BarColumn(), count, Elapsed(), console=console, disable=off)
