"""Progress bars on standard error, for the command line; the library itself shows none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from eri_runtime.commands.subcommand import is_open
from eri_runtime.units import megabytes

if TYPE_CHECKING:
    from rich.progress import Progress

Unit = Literal["steps", "bytes"]


class Advance(Protocol):
    """Shows the bar `name` at `done` of `total`; `doing` describes the current item."""

    def __call__(
        self, name: str, done: int, total: int, *, doing: str = "", unit: Unit = "steps"
    ) -> None: ...


@contextmanager
def progress_bars() -> Iterator[Advance]:
    """Context manager that gives an `Advance`.

    Each name gets a bar of its own, with the time since its first call. A bar may start again with
    another total. Shows nothing if standard error is not a terminal.
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
    """Returns `3/20`, or `1.2 of 24.0 MB`; nothing if the total is 1."""
    if total == 1:
        return ""
    return f"{megabytes(done)} of {megabytes(total)}" if unit == "bytes" else f"{done}/{total}"


def _progress() -> Progress:
    """Returns rich's progress display on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed

    texts = [TextColumn("{task.description}"), TextColumn("{task.fields[doing]}")]
    count = TextColumn("{task.fields[count]}", justify="right")
    console = Console(stderr=True)
    # with FORCE_COLOR rich would also draw on a pipe
    on = is_open(sys.stderr) and sys.stderr.isatty()
    return Progress(*texts, BarColumn(), count, Elapsed(), console=console, disable=not on)
