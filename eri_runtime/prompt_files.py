"""Files of prompts: `.txt`, `.jsonl` or `.csv`, in UTF-8; every error names its line."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from eri_runtime.errors import UnknownNameError, UsageError, short
from eri_runtime.jobs import Job, located
from eri_runtime.parsing import parse_size

Line = tuple[str, Job]  # FILE:LINE and what it asks for
ALIASES = {
    "negative": "negative_prompt",
    "guidance": "guidance_scale",
    "true_cfg": "true_cfg_scale",
    "steps": "num_inference_steps",
}
FIELDS = tuple(field.name for field in fields(Job))
SIZE = "size"
NAMES = (*FIELDS, *ALIASES, SIZE)
KINDS = {
    **dict.fromkeys(("seed", "height", "width", "num_inference_steps"), int),
    **dict.fromkeys(("guidance_scale", "true_cfg_scale"), float),
}


def read_prompts(path: Path) -> list[Line]:
    """The jobs of a file, in order, each with its `FILE:LINE`.

    - `.txt`: a prompt a line; blank lines and those that begin with # are passed over.
    - `.jsonl`: an object a line, with a `Job`'s fields, or the command line's own words `negative`,
      `guidance`, `true_cfg`, `steps` and `size` ("WxH"); null is not given.
    - `.csv`: a first row of the same names; an empty cell is not given.

    A byte order mark and CRLF are taken. Raises `UsageError` for a file that is none of these, has
    no prompt, or has a line that cannot be a job.
    """
    readers = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv}
    if path.suffix.lower() not in readers:
        raise UsageError("--prompts", got=path, expected="a .txt, .jsonl or .csv file")
    read = readers[path.suffix.lower()]
    lines = []
    for number, words in read(path, _text_of(path)):
        place = f"{path}:{number}"
        with located(place):
            lines.append((place, _job(words)))
    if not lines:
        raise UsageError(path, got="no prompts", expected="one or more")
    return lines


def _text_of(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError("--prompts", got=error, expected="a file that can be read") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        got = f"the byte 0x{content[error.start]:02x}"
        raise UsageError(f"{path}:{number}", got=got, expected="UTF-8") from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines without the blank ones, and without the space around them."""
    for number, line in enumerate(text.split("\n"), 1):
        if kept := line.strip():
            yield number, kept


def _txt(_: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in _lines(text):
        if not line.startswith("#"):
            yield number, {"prompt": line}


def _jsonl(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in _lines(text):
        with located(f"{path}:{number}"):
            yield number, _words(_object(line))


def _object(line: str) -> list[tuple[str, Any]]:
    """The pairs of a JSON object, whose repeated keys JSON itself would pass over."""
    try:
        found = json.loads(line, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise UsageError("JSON", got=short(str(error)), expected="an object a line") from error
    if not isinstance(found, _Pairs):
        raise UsageError("JSON", got=short(found), expected="an object, such as {'prompt': 'a'}")
    return list(found)


class _Pairs(list[Any]):
    """An object of JSON, which is told from an array by its type."""


def _csv(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    names: Sequence[str] | None = None
    for number, row in _rows(path, text):
        with located(f"{path}:{number}"):
            if names is None:
                names = [name.strip() for name in row]
                _words((name, None) for name in names)  # checked before any row is
                continue
            if len(row) != len(names):
                expected = f"{len(names)}, as in the first row"
                raise UsageError("row", got=f"{len(row)} cells", expected=expected)
            cells = zip(names, (cell.strip() or None for cell in row), strict=True)
            yield number, {name: _number(name, cell) for name, cell in _words(cells).items()}


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with the number of the line they begin at."""
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
    """A cell as the number its column holds."""
    if name not in KINDS or not isinstance(cell, str):
        return cell
    kind = KINDS[name]
    try:
        return kind(cell.replace("_", "x"))  # Python alone reads 1_000
    except ValueError as error:
        expected = "an integer" if kind is int else "a number"
        raise UsageError(name, got=short(cell), expected=expected) from error


def _words(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A job's fields by their own names, and `size`.

    Raises `UnknownNameError` for a name that is none, `UsageError` for a word that is there twice.
    """
    words: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    for name, value in pairs:
        if name not in NAMES:
            near = get_close_matches(name, NAMES, 1)
            fix = f"did you mean {near[0]}?" if near else None
            raise UnknownNameError(
                "name", got=short(name), expected=f"one of {', '.join(NAMES)}", fix=fix
            )
        own = ALIASES.get(name, name)
        counts.update(("height", "width") if own == SIZE else (own,))
        words[own] = value
        if (most := counts.most_common(1)[0])[1] > 1:
            raise UsageError(most[0], got="given twice", expected="once")
    return words


def _job(words: Mapping[str, Any]) -> Job:
    given = {name: value for name, value in words.items() if value is not None}
    size = given.pop(SIZE, None)
    if size is not None:
        given["width"], given["height"] = _size(size)
    if "prompt" not in given:
        raise UsageError("prompt", got="none", expected="a text")
    return Job(**given)


def _size(text: object) -> tuple[int, int]:
    try:
        return parse_size(text if isinstance(text, str) else "")
    except (argparse.ArgumentTypeError, ValueError) as error:  # digits beyond what int() reads
        raise UsageError(SIZE, got=short(text), expected="WIDTHxHEIGHT in pixels") from error
