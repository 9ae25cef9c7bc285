"""Prints the results: a line for each row, short enough to read in a terminal's last page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from benchmarks.gpu.record import Row, passed

KERNELS = 8  # lines of a kernel table


def lines(rows: Iterable[Row]) -> Iterator[str]:
    """Yields the lines of every row, parity rows that passed left out."""
    for row in rows:
        if row["status"] != "ok":
            why = row.get("error") or row.get("reason")
            yield f"{row['stage']:24} {row['subject']:32} {row['status']}: {why}"
        elif row["part"] != "parity" or not row["passed"]:
            yield f"{row['stage']:24} {row['subject']:32} {_figures(row)}"
            yield from _kernels(row)


def _figures(row: Row) -> str:
    """Returns the figures of a row that is ok."""
    words = []
    if "what" in row:
        words.append(row["what"])
    words += [f"{name} {_spread(row[name])}" for name in ("step_ms", "total_ms") if name in row]
    if row.get("device_mb") is not None:
        words.append(f"{row['device_mb']} MB")
    verdict = row if row["part"] == "parity" else row.get("parity")
    if verdict is not None:
        words.append(_error(verdict))
    words += [f"{name} {row[name]}" for name in ("bytes", "seconds", "calls", "ms") if name in row]
    if passed(row) is False:
        words.append("DOES NOT COUNT")
    return ", ".join(words)


def _kernels(row: Row) -> Iterator[str]:
    """Yields the first kernels of a table."""
    for each in row.get("kernels", ())[:KERNELS]:
        yield f"{'':24} {each['ms']:9.3f} ms {each['calls']:5}  {each['name'][:80]}"


def _spread(values: Mapping[str, Any]) -> str:
    """Formats a median with its 95th percentile."""
    return f"{values['median']:.2f} (p95 {values['p95']:.2f})"


def _error(verdict: Mapping[str, Any]) -> str:
    """Formats an error with its limit."""
    error = "not finite" if verdict["error"] is None else f"{verdict['error']:.1e}"
    return f"error {error} {'≤' if verdict['passed'] else '>'} {verdict['limit']:.0e}"
