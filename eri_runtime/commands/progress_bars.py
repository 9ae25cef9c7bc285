"""Progress on standard error, for the command line; the library itself shows none.

On a terminal it is bars, elsewhere a line for each stage that begins.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from eri_runtime.commands.subcommand import is_open, write_line
from eri_runtime.unfinished import on_stop
from eri_runtime.units import megabytes

if TYPE_CHECKING:
    from rich.progress import Progress

Unit = Literal["steps", "bytes"]
SHOW_CURSOR = b"\x1b[?25h\n"  # bars hide it


class Advance(Protocol):
    """Shows the stage `name` at `done` of `total`; `doing` describes the current item."""

    def __call__(
        self, name: str, done: int, total: int, *, doing: str = "", unit: Unit = "steps"
    ) -> None: ...


@contextmanager
def progress_bars(*, quiet: bool = False) -> Iterator[Advance]:
    """Context manager that gives an `Advance`, which shows nothing if `quiet` is set.

    On a terminal each name gets a bar of its own, with the time since its first call. A bar may
    start again with another total. Elsewhere each name gets a line, and each `doing` of it.
    """
    if quiet:
        yield _ignore
    elif is_open(sys.stderr) and sys.stderr.isatty():
        with _bars() as advance:
            yield advance
    else:
        yield _lines()


def _ignore(name: str, done: int, total: int, *, doing: str = "", unit: Unit = "steps") -> None:
    """Shows nothing."""


def _lines() -> Advance:
    """Returns an `Advance` that prints a line where a stage begins."""
    begun = set()

    def advance(
        name: str,
        done: int,  # noqa: ARG001 bars show it
        total: int,
        *,
        doing: str = "",
        unit: Unit = "steps",
    ) -> None:
        if (name, doing) in begun:
            return
        begun.add((name, doing))
        size = megabytes(total) if unit == "bytes" else f"{total} {unit}"
        text = f"{name}: {doing}" if doing else f"{name} {size}".removesuffix(" 1 steps")
        write_line(sys.stderr, f"eri: {text}")

    return advance


@contextmanager
def _bars() -> Iterator[Advance]:
    """Context manager that gives an `Advance` that draws bars."""
    forget = on_stop(lambda: os.write(2, SHOW_CURSOR))
    try:
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
    finally:
        forget()


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
    return Progress(*texts, BarColumn(), count, Elapsed(), console=Console(stderr=True))
