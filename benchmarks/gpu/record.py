"""The rows and the results file: every row is checked against a schema."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from eri_runtime.bench.record import write as write_text
from eri_runtime.errors import NonFiniteError, UsageError

VERSION = 2
STATES = ("ok", "error", "skipped")
QUOTED = 1500  # characters of an error in its row
Row = Mapping[str, Any]
Check = Callable[[Any], bool]


def failure(subject: str, error: BaseException) -> dict[str, Any]:
    """Returns the row of an exception."""
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(each.filename).name}:{each.lineno})" for each in frame)
    text = f"{type(error).__name__}: {str(error)[:QUOTED]}{where}"
    return {"subject": subject, "status": "error", "error": text}


def _text(value: Any) -> bool:
    """A non-empty string."""
    return isinstance(value, str) and bool(value)


def _number(value: Any) -> bool:
    """A number, 0 or more."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _maybe(value: Any) -> bool:
    """A number or None."""
    return value is None or _number(value)


def _bool(value: Any) -> bool:
    """A boolean."""
    return isinstance(value, bool)


def _parity(value: Any) -> bool:
    """A verdict that agrees with its error and limit."""
    return isinstance(value, Mapping) and _problem(value, PARITY) is None and _just(value)


def _parity_or_none(value: Any) -> bool:
    """The same, or None where there is nothing to compare with."""
    return value is None or _parity(value)


def _spread(value: Any) -> bool:
    """A median between its percentiles, of at least one sample."""
    if not isinstance(value, Mapping) or _problem(value, SPREAD) is not None:
        return False
    ordered = value["low"] <= value["median"] <= value["high"] <= value["p95"]
    return ordered and value["samples"] > 0


def _just(verdict: Mapping[str, Any]) -> bool:
    """Returns whether `passed` agrees with error and limit."""
    error = verdict["error"]
    return verdict["passed"] == (error is not None and error <= verdict["limit"])


PARITY: Mapping[str, Check] = {
    "against": _text,
    "error": _maybe,
    "limit": _number,
    "passed": _bool,
}
SPREAD: Mapping[str, Check] = dict.fromkeys(("median", "low", "high", "p95", "samples"), _number)
COMMON: Mapping[str, Check] = {
    "stage": _text,
    "subject": _text,
    "status": lambda value: value in STATES,
    "device": _text,
    "driver": _text,
    "versions": lambda value: isinstance(value, Mapping),
    "rehearsal": _bool,
}
MEASURED: Mapping[str, Mapping[str, Check]] = {
    "fill": {"precision": _text, "bytes": _number, "seconds": _number},
    "parity": {"precision": _text, "what": _text, **PARITY},
    "latency": {
        "precision": _text,
        "parity": _parity,
        "counts": _bool,
        "steps": _number,
        "step_ms": _spread,
        "total_ms": _spread,
        "device_mb": _maybe,
    },
    "component": {
        "precision": _text,
        "what": _text,
        "parity": _parity,
        "counts": _bool,
        "total_ms": _spread,
        "device_mb": _maybe,
    },
    "picture": {
        "precision": _text,
        "parity": _parity_or_none,
        "counts": _bool,
        "steps": _number,
        "total_ms": _spread,
        "first_ms": _number,
        "device_mb": _maybe,
    },
    "kernels": {
        "precision": _text,
        "steps": _number,
        "calls": _number,
        "ms": _number,
        "kernels": lambda value: isinstance(value, list),
    },
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
    """Raises UsageError for the first part of a record that breaks the schema."""
    if (problem := _problem(record, HEAD)) is not None:
        raise UsageError("results", got=problem, expected=", ".join(HEAD))
    for number, row in enumerate(record["rows"]):
        if (problem := problem_of(row)) is not None:
            raise UsageError(f"row {number}", got=problem, expected="a row of the results' schema")


def problem_of(row: Row) -> str | None:
    """Returns what is wrong with a row, or None."""
    if (problem := _problem(row, COMMON)) is not None:
        return problem
    if row["status"] != "ok":
        return _problem(row, OTHERWISE[row["status"]])
    if row.get("part") not in MEASURED:
        return f"part {row.get('part')!r}"
    if (problem := _problem(row, MEASURED[row["part"]])) is not None:
        return problem
    if row["part"] == "parity" and not _just(row):
        return "a verdict that its error and limit do not give"
    if row.get("parity") is not None and row["counts"] != row["parity"]["passed"]:
        return "a time that counts without parity, or the reverse"
    return None


def write(file: Path, record: Mapping[str, Any]) -> None:
    """Checks a record and writes it atomically; raises UsageError if it breaks the schema."""
    check(record)
    write_text(file, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _problem(value: Mapping[str, Any], checks: Mapping[str, Check]) -> str | None:
    """Returns the first field that is missing or fails its check, or None."""
    for name, passes in checks.items():
        if name not in value:
            return f"no {name}"
        if not passes(value[name]):
            return f"{name} {value[name]!r}"
    return None


def failed(rows: Iterable[Row], *, garbage: bool = False) -> list[Row]:
    """Returns the rows that are errors or did not pass.

    With `garbage` numbers, those that are errors of another kind than numbers that are not finite.
    """
    return [each for each in rows if (_breaks(each) if garbage else _fails(each))]


def _fails(row: Row) -> bool:
    """Returns whether a row is an error or did not pass."""
    return row["status"] == "error" or passed(row) is False


def _breaks(row: Row) -> bool:
    """Returns whether a row is an error that no number could cause."""
    return row["status"] == "error" and not row["error"].startswith(NonFiniteError.__name__)


def passed(row: Row) -> bool | None:
    """Returns whether a row's numbers agreed with its reference; None if it has none."""
    if row["status"] != "ok":
        return None
    return row.get("counts", row.get("passed"))
