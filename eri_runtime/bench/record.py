"""A benchmark's results as data: one JSON file, whose schema is `schema.json` in this folder.

Times are milliseconds, except fields that end in `_s`, which are seconds; memory is bytes. All
samples are kept, so every figure of a report can be computed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from eri_runtime.bench.record_parts import (
    STAGES,
    Build,
    Distance,
    Kind,
    Limit,
    Machine,
    Memory,
    Moment,
    Parity,
    Picture,
    Row,
    Sample,
    Software,
    Status,
    Subject,
    Workload,
)
from eri_runtime.errors import UsageError
from eri_runtime.files import parse_json, read_regular_file
from eri_runtime.partial_files import write_whole

__all__ = [
    "SCHEMA", "STAGES", "VERSION", "Build", "Distance", "Kind", "Limit", "Machine", "Memory",
    "Moment", "Parity", "Picture", "Record", "Row", "Sample", "Software", "Status", "Subject",
    "Workload", "from_plain", "read", "to_json", "write",
]  # fmt: skip

VERSION = 1
SCHEMA = Path(__file__).with_name("schema.json")


@dataclass(frozen=True, kw_only=True)
class Record:
    """The results of one run of `eri bench`.

    Attributes:
        created: Date and time in UTC, ISO 8601.
        command: The command line that repeats the run.
        machine: The machine it ran on.
        software: The versions it ran with.
        workload: The work that every subject got.
        reference: Name of the subject whose images the others are compared with.
        subjects: All subjects, failed ones included.
        rows: One row per subject and size.
        builds: Seconds of exports and compilations.
        pictures: Small copies of the images, if they were kept.
        version: Version of the file format.
    """

    created: str
    command: str
    machine: Machine
    software: Software
    workload: Workload
    reference: str
    subjects: tuple[Subject, ...]
    rows: tuple[Row, ...]
    builds: tuple[Build, ...] = ()
    pictures: tuple[Picture, ...] = ()
    version: int = VERSION

    def subject(self, name: str) -> Subject:
        """Returns the subject called `name`."""
        return next(each for each in self.subjects if each.name == name)

    def row(self, subject: str, size: tuple[int, int]) -> Row | None:
        """Returns the row of a subject at a (width, height), or None."""
        rows = (each for each in self.rows if each.subject == subject)
        return next((each for each in rows if (each.width, each.height) == size), None)


def to_json(record: Record) -> str:
    """Returns the text of a results file."""
    return json.dumps(asdict(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write(file: Path, text: str) -> None:
    """Writes a file atomically: a reader sees the old content or the new one, never a part.

    Raises `OSError` for a path that is no file, such as a device, or that cannot be written.
    """
    write_whole(file, text.encode("utf-8"))


def read(file: Path) -> Record:
    """Reads a results file.

    Args:
        file: A JSON file that `eri bench --output` wrote.

    Returns:
        The record in it.

    Raises:
        UsageError: If the file cannot be read, is no results file, or has another version.
    """
    try:
        values = parse_json(read_regular_file(file).decode("utf-8"))
        if values["version"] != VERSION:
            got = f"version {values['version']}"
            raise UsageError(file, got=got, expected=f"version {VERSION} of results")
        record: Record = from_plain(Record, values)
    except OSError as error:
        raise UsageError(file, got=error.strerror or error, expected="a results file") from error
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise UsageError(file, got=got, expected="results of `eri bench`") from error
    return record


_PARTS: Mapping[type, Mapping[str, type]] = {
    Record: {
        "machine": Machine,
        "software": Software,
        "workload": Workload,
        "subjects": Subject,
        "rows": Row,
        "builds": Build,
        "pictures": Picture,
    },
    Subject: {"memory": Memory},
    Memory: {"timeline": Moment},
    Row: {"samples": Sample, "parity": Parity},
    Parity: {"limit": Limit, "worst": Distance, "cases": Distance},
}


def from_plain(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Builds a dataclass and its parts from plain values; raises KeyError for an unknown field."""
    unknown = values.keys() - {each.name for each in fields(kind)}
    if unknown:
        raise KeyError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    parts = _PARTS.get(kind, {})
    return kind(**{name: _part(parts.get(name), value) for name, value in values.items()})


def _part(kind: type | None, value: Any) -> Any:
    """Builds a field's value, element by element if it is a list."""
    if isinstance(value, list):
        return tuple(_part(kind, each) for each in value)
    return from_plain(kind, value) if kind is not None and value is not None else value
