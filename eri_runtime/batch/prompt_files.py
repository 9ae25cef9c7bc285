"""Reads files of prompts: `.txt`, `.jsonl` or `.csv`, in UTF-8. Every error names its line."""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from eri_runtime.errors import UnknownNameError, UsageError, nearest, short
from eri_runtime.files import parse_json, read_regular_file
from eri_runtime.request import Job, error_prefix, parse_size

Line = tuple[str, Job]  # FILE:LINE and its job
ALIASES = {
    "negative": "negative_prompt",
    "guidance": "guidance_scale",
    "true_cfg": "true_cfg_scale",
    "steps": "num_inference_steps",
}
FIELDS = tuple(field.name for field in fields(Job))
SIZE = "size"
NAMES = (*FIELDS, *ALIASES, SIZE)
NUMBERS = {
    **dict.fromkeys(("seed", "height", "width", "num_inference_steps"), int),
    **dict.fromkeys(("guidance_scale", "true_cfg_scale"), float),
}


def read_prompts(path: Path) -> list[Line]:
    """Reads the jobs of a file, in order, each with its `FILE:LINE`.

    - `.txt`: one prompt per line; blank lines and lines that begin with # are skipped.
    - `.jsonl`: one object per line, with the fields of a `Job` or the command line's names
      `negative`, `guidance`, `true_cfg`, `steps` and `size` ("WxH"); null means the default.
    - `.csv`: the same names in the first row; an empty cell means the default.

    Accepts a byte order mark and CRLF.

    Args:
        path: The file.

    Returns:
        (`FILE:LINE`, job) for every prompt.

    Raises:
        UsageError: If the file cannot be read, has another type, has no prompt, or a line is
            invalid.
    """
    readers = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv}
    if path.suffix.lower() not in readers:
        raise UsageError("--prompts", got=path, expected="a .txt, .jsonl or .csv file")
    read = readers[path.suffix.lower()]
    lines = []
    for number, values in read(path, _read_text(path)):
        place = f"{path}:{number}"
        with error_prefix(place):
            lines.append((place, _job(values)))
    if not lines:
        raise UsageError(path, got="no prompts", expected="one or more")
    return lines


def _read_text(path: Path) -> str:
    """Reads a file as UTF-8; raises `UsageError` if that fails."""
    try:
        content = read_regular_file(path)
    except OSError as error:
        raise UsageError("--prompts", got=error, expected="a file that can be read") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        got = f"the byte 0x{content[error.start]:02x}"
        raise UsageError(f"{path}:{number}", got=got, expected="UTF-8") from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yields every line that is not blank, stripped, with its number."""
    for number, line in enumerate(text.split("\n"), 1):
        if stripped := line.strip():
            yield number, stripped


def _txt(_: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the prompt of every line, with its number."""
    for number, line in _lines(text):
        if not line.startswith("#"):
            yield number, {"prompt": line}


def _jsonl(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the fields of every object, with its line number."""
    for number, line in _lines(text):
        with error_prefix(f"{path}:{number}"):
            yield number, _job_fields(_object(line))


def _object(line: str) -> list[tuple[str, Any]]:
    """Returns the pairs of a JSON object, repeated keys included, which `json` would drop."""
    try:
        value = parse_json(line, _Pairs, infinite=True)
    except ValueError as error:
        raise UsageError("JSON", got=short(str(error)), expected="an object a line") from error
    if not isinstance(value, _Pairs):
        raise UsageError("JSON", got=short(value), expected="an object, such as {'prompt': 'a'}")
    return list(value)


class _Pairs(list[Any]):
    """A JSON object as a list of pairs; its type distinguishes it from a JSON array."""


def _csv(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the fields of every row, with its line number."""
    names: Sequence[str] | None = None
    for number, row in _rows(path, text):
        with error_prefix(f"{path}:{number}"):
            if names is None:
                names = [name.strip() for name in row]
                _job_fields((name, None) for name in names)  # checks the names before any row
                continue
            if len(row) != len(names):
                expected = f"{len(names)}, as in the first row"
                raise UsageError("row", got=f"{len(row)} cells", expected=expected)
            cells = zip(names, (cell.strip() or None for cell in row), strict=True)
            yield number, {name: _number(name, cell) for name, cell in _job_fields(cells).items()}


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields every row that is not blank, with the number of its first line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UsageError(f"{path}:{number}", got=error, expected="a row of CSV") from error
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield number, row


def _number(name: str, cell: Any) -> Any:
    """Returns a cell as a number if its column holds numbers, else unchanged."""
    if name not in NUMBERS or not isinstance(cell, str):
        return cell
    kind = NUMBERS[name]
    try:
        return kind(cell.replace("_", "x"))  # Python alone reads 1_000
    except ValueError as error:
        expected = "an integer" if kind is int else "a number"
        raise UsageError(name, got=short(cell), expected=expected) from error


def _job_fields(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a job's fields by their full names, and `size`.

    Raises `UnknownNameError` for an unknown name, and `UsageError` for one that is given twice.
    """
    values: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    for name, value in pairs:
        if name not in NAMES:
            near = nearest(name, NAMES)
            fix = f"did you mean {near}?" if near else None
            raise UnknownNameError(
                "name", got=short(name), expected=f"one of {', '.join(NAMES)}", fix=fix
            )
        field = ALIASES.get(name, name)
        counts.update(("height", "width") if field == SIZE else (field,))
        values[field] = value
        if (most := counts.most_common(1)[0])[1] > 1:
            raise UsageError(most[0], got="given twice", expected="once")
    return values


def _job(values: Mapping[str, Any]) -> Job:
    """Returns the job with these fields; None means the default."""
    settings = {name: value for name, value in values.items() if value is not None}
    size = settings.pop(SIZE, None)
    if size is not None:
        settings["width"], settings["height"] = _size(size)
    if "prompt" not in settings:
        raise UsageError("prompt", got="none", expected="a text")
    return Job(**settings)


def _size(text: object) -> tuple[int, int]:
    """Parses `WxH` into (width, height); raises `UsageError` for anything else."""
    try:
        return parse_size(text if isinstance(text, str) else "")
    except (argparse.ArgumentTypeError, ValueError) as error:  # digits beyond what int() reads
        raise UsageError(SIZE, got=short(text), expected="WIDTHxHEIGHT in pixels") from error
