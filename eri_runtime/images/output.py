"""Places where an image can be written."""

from __future__ import annotations

import os
from pathlib import Path

from eri_runtime.errors import UsageError, short
from eri_runtime.partial_files import LONGEST, partial_file

WRITABLE = "a place where a PNG can be written"


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
