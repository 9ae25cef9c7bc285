"""Reads the files that a caller names, and parses JSON. Never blocks, and fails in one way.

A path may be a pipe, a device, a socket or a folder, and opening or reading some of these never
ends. Every function here raises `OSError` for them, and for a path that no system call takes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from eri_runtime.errors import short

MOST_TEXT = 1 << 28  # bytes of a prompts file, a manifest or a configuration
LONGEST_NUMBER = 400  # characters; the largest float has 309 digits

READ = os.O_RDONLY | os.O_NONBLOCK  # for a pipe that takes the file's place after the check
Pairs = Callable[[list[tuple[str, Any]]], Any]


@contextlib.contextmanager
def open_regular_file(path: str | Path) -> Iterator[tuple[BufferedReader, int]]:
    """Opens a regular file for reading; yields the stream and the size in bytes.

    Raises `OSError` if the path is no regular file or cannot be read.
    """
    check_regular(path)
    with os.fdopen(os.open(path, READ), "rb") as stream:
        status = os.fstat(stream.fileno())
        _check_mode(path, status.st_mode)  # something else may have taken its place
        yield stream, status.st_size


def check_regular(path: str | Path) -> None:
    """Raises `OSError` unless the path is a regular file, or a link to one."""
    try:
        mode = Path(path).stat().st_mode
    except ValueError as error:
        raise OSError(errno.EINVAL, f"not a path ({error})", str(path)) from error
    _check_mode(path, mode)


def _check_mode(path: str | Path, mode: int) -> None:
    """Raises `OSError` unless `stat` gives the mode of a regular file."""
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"{kind_of(mode)}, which is not a regular file", str(path))


def check_replaceable(path: str | Path) -> None:
    """Raises `OSError` if something is at the path that is not a regular file, or a link to one.

    A rename to the path would replace it: as root, even a device such as /dev/null.
    """
    with contextlib.suppress(FileNotFoundError):
        check_regular(path)


def is_regular(path: str | Path) -> bool:
    """Returns whether a path is a regular file, or a link to one, that can be looked at."""
    try:
        check_regular(path)
    except OSError:
        return False
    return True


def kind_of(mode: int) -> str:
    """Returns what a path is, by the mode that `stat` gives."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def read_regular_file(path: str | Path, most: int = MOST_TEXT) -> bytes:
    """Returns the content of a regular file.

    Raises `OSError` if the path is no regular file, cannot be read, or is larger than `most` bytes.
    """
    with open_regular_file(path) as (stream, size):
        content = stream.read(min(size, most) + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"a file of more than {most} bytes", str(path))
    return content


def parse_json(text: str | bytes, pairs: Pairs | None = None, *, infinite: bool = False) -> Any:
    """Parses JSON; raises `ValueError` for anything that is not.

    Python's parser takes NaN and Infinity, which are not JSON, and fails in other ways for values
    that are nested too deep and for numbers that no float holds. `pairs` makes an object's value of
    its names and values; default: a dictionary. `infinite` lets NaN and Infinity pass, which
    diffusers writes into the configs of schedulers.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=pairs,
            parse_constant=float if infinite else _refuse,
            parse_int=_integer,
            parse_float=_float,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _refuse(text: str) -> NoReturn:
    """Raises `ValueError` for NaN and Infinity."""
    raise ValueError(f"{text} is not JSON")


def _integer(text: str) -> int:
    """Parses an integer; raises `ValueError` for one that no float holds."""
    _float(text)
    return int(text)


def _float(text: str) -> float:
    """Parses a number; raises `ValueError` for one that no float holds."""
    number = float(text) if len(text) <= LONGEST_NUMBER else math.inf
    if math.isinf(number):
        raise ValueError(f"the number {short(text)} is too large")
    return number
