"""Files that appear complete or not at all, and places where one can be written."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from eri_runtime.errors import UsageError, short
from eri_runtime.files import check_replaceable

LONGEST = 255  # bytes of a file's name
WRITABLE = "a place where a PNG can be written"


@contextmanager
def partial_file(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Context manager that gives a new file beside `path`, open for writing, and its name.

    Creates missing folders. The file has a name of its own in every process and thread, and is
    locked, so that `remove_stale` leaves it alone. At the end it is removed, unless it was renamed.
    Raises `OSError` if `path` is not a file but a device, say, which a rename would replace.
    """
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(partial_name(path.name))
    try:
        with partial.open("xb") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file, partial
    finally:
        partial.unlink(missing_ok=True)


def partial_name(name: str) -> str:
    """Returns a new name of an unfinished file, such as `.fox.png.4711-0123abcd.partial`.

    A name that would be too long is replaced by its hash.
    """
    ending = f".{os.getpid()}-{secrets.token_hex(4)}.partial"
    if len(os.fsencode(name)) + len(ending) + 1 > LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f".{name}{ending}"


def check_output(offender: str, path: Path) -> None:
    """Raises `UsageError` unless a file `path` can be written; creates missing folders.

    `offender` is the argument that the message names.
    """
    if not path.name:
        raise UsageError(offender, got=short(str(path)), expected="the path of a file")
    size = len(os.fsencode(path.name))
    if size > LONGEST:
        expected = f"{LONGEST} bytes at most"
        got = f"a name of {size} bytes, {short(path.name)}"
        raise UsageError(offender, got=got, expected=expected, fix="choose a shorter name")
    try:
        if path.is_dir():
            fix = "add a file's name, such as fox.png"
            raise UsageError(offender, got=f"the folder {path}", expected="a file", fix=fix)
        with partial_file(path):
            pass
    except OSError as error:
        raise UsageError(offender, got=error, expected=WRITABLE, fix="choose another") from error


def claim(partial: Path, path: Path) -> None:
    """Renames a finished file to a name that must be free, whoever else wants it.

    Raises `FileExistsError` if the name is taken.
    """
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: reserve the name by an empty file
        path.touch(exist_ok=False)
        partial.replace(path)
