"""The results file: what a row must hold, checked before it is written, and written whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.settings import PARTS
from eri_runtime.bench.record import write as write_text
from eri_runtime.errors import UsageError

VERSION = 1
STATES = ("ok", "error", "skipped")
Row = Mapping[str, Any]
Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _maybe(value: Any) -> bool:
    return value is None or _number(value)


def _bool(value: Any) -> bool:
    return isinstance(value, bool)


def _parity(value: Any) -> bool:
    return isinstance(value, Mapping) and _problem(value, PARITY) is None and _just(value)


def _spread(value: Any) -> bool:
    if not isinstance(value, Mapping) or _problem(value, SPREAD) is not None:
        return False
    return value["low"] <= value["median"] <= value["high"] and value["samples"] > 0


def _just(verdict: Mapping[str, Any]) -> bool:
    """Whether `passed` is what error and limit say."""
    error = verdict["error"]
    return verdict["passed"] == (error is not None and error <= verdict["limit"])


PARITY: Mapping[str, Check] = {
    "against": _text,
    "error": _maybe,
    "limit": _number,
    "passed": _bool,
}
SPREAD: Mapping[str, Check] = dict.fromkeys(("median", "low", "high", "samples"), _number)
COMMON: Mapping[str, Check] = {
    "part": lambda value: value in PARTS,
    "model": _text,
    "size": _number,
    "subject": _text,
    "status": lambda value: value in STATES,
}
MEASURED: Mapping[str, Mapping[str, Check]] = {
    "bundle": {
        "digest": _text,
        "made": _text,
        "precision": _text,
        "bytes": _number,
        "parameters": _number,
        "seconds": _number,
    },
    "plan": {"file": _text, "made": _text, "bytes": _number, "version": _text, "seconds": _number},
    "parity": {"what": _text, **PARITY},
    "latency": {
        "parity": _parity,
        "counts": _bool,
        "steps": _number,
        "step_ms": _spread,
        "total_ms": _spread,
    },
    "memory": {"device_mb": _maybe, "host_mb": _number, "steps": _number},
}
OTHERWISE: Mapping[str, Mapping[str, Check]] = {
    "error": {"error": _text},
    "skipped": {"reason": _text},
}
HEAD: Mapping[str, Check] = {
    "version": lambda value: value == VERSION,
    "about": lambda value: isinstance(value, Mapping) and "device" in value,
    "settings": lambda value: isinstance(value, Mapping),
    "finished": _bool,
    "rows": lambda value: isinstance(value, list),
}


def check(record: Mapping[str, Any]) -> None:
    """Raise `UsageError` naming the first thing of a record that is not as it must be."""
    if (problem := _problem(record, HEAD)) is not None:
        raise UsageError("results", got=problem, expected=", ".join(HEAD))
    for number, row in enumerate(record["rows"]):
        if (problem := problem_of(row)) is not None:
            raise UsageError(f"row {number}", got=problem, expected="a row of the results' schema")


def problem_of(row: Row) -> str | None:
    """What is wrong with a row, or None."""
    if (problem := _problem(row, COMMON)) is not None:
        return problem
    wanted = OTHERWISE.get(row["status"]) or MEASURED[row["part"]]
    if (problem := _problem(row, wanted)) is not None or row["status"] != "ok":
        return problem
    if row["part"] == "parity" and not _just(row):
        return "a verdict that its error and limit do not give"
    if row["part"] == "latency" and row["counts"] != row["parity"]["passed"]:
        return "a latency that counts without parity, or the reverse"
    return None


def write(file: Path, record: Mapping[str, Any]) -> None:
    """Check and write, so that a reader finds the old file or the new one."""
    check(record)
    write_text(file, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _problem(value: Mapping[str, Any], wanted: Mapping[str, Check]) -> str | None:
    for name, passes in wanted.items():
        if name not in value:
            return f"no {name}"
        if not passes(value[name]):
            return f"{name} {value[name]!r}"
    return None


def failed(rows: Iterable[Row]) -> list[Row]:
    """The rows that are errors or whose parity did not pass."""
    return [row for row in rows if row["status"] == "error" or verdict_of(row) is False]


def verdict_of(row: Row) -> bool | None:
    """Whether a row's parity passed; None for one that has none."""
    if row["status"] != "ok":
        return None
    return row.get("parity", row).get("passed")
