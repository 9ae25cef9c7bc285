"""The results on a terminal: a table for each part that has rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.gpu.record import Row, failed, verdict_of
from benchmarks.gpu.settings import PARTS

Cells = Callable[[Row], Iterable[str]]


def _spread(values: Mapping[str, Any]) -> str:
    return f"{values['median']:.2f} ({values['low']:.2f} to {values['high']:.2f})"


def _error(verdict: Mapping[str, Any]) -> str:
    error = "not finite" if verdict["error"] is None else f"{verdict['error']:.1e}"
    return f"{error} ≤ {verdict['limit']:.0e}" if verdict["passed"] else f"{error}: FAILED"


def _megabytes(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _file(row: Row) -> tuple[str, ...]:
    return f"{row['bytes'] / 1e9:.2f}", row["made"], f"{row['seconds']}"


# a part's columns after model and subject, and a row's cells in them
COLUMNS: Mapping[str, tuple[tuple[str, ...], Cells]] = {
    "bundle": (
        ("precision", "GB", "made", "seconds"),
        lambda row: (row["precision"], *_file(row)),
    ),
    "plan": (
        ("plan", "GB", "made", "seconds"),
        lambda row: (row["file"], *_file(row)),
    ),
    "parity": (
        ("what", "against", "relative error"),
        lambda row: (row["what"], row["against"], _error(row)),
    ),
    "latency": (
        ("ms a step (10–90 %)", "ms in all", "relative error"),
        lambda row: (
            *(_spread(row[name]) if row["counts"] else "–" for name in ("step_ms", "total_ms")),
            _error(row["parity"]),
        ),
    ),
    "memory": (
        ("device MB", "host MB"),
        lambda row: (_megabytes(row["device_mb"]), _megabytes(row["host_mb"])),
    ),
}


def show(rows: Iterable[Row], console: Console) -> None:
    """Print every row, errors and what was skipped among them."""
    rows = list(rows)
    for part in PARTS:
        those = [row for row in rows if row["part"] == part]
        if those:
            console.print(_table(part, those))
    for row in rows:
        if row["status"] == "error":
            about = f"{row['part']}, {row['model']} {row['size']}, {row['subject']}"
            console.print(f"{about}: {row['error']}", style="yellow", markup=False)
    count = len(failed(rows))
    skipped = sum(row["status"] == "skipped" for row in rows)
    console.print(f"{len(rows)} rows, {count} failed, {skipped} skipped")


def _table(part: str, rows: Iterable[Row]) -> Table:
    titles, cells = COLUMNS[part]
    table = Table("model", "subject", *titles, title=part, title_justify="left")
    for row in rows:
        about = f"{row['model']} {row['size']}", row["subject"]
        if row["status"] == "ok":
            style = "red" if verdict_of(row) is False else None
            table.add_row(*about, *cells(row), style=style)
        else:
            table.add_row(*about, row["status"], style="yellow")
    return table
