"""Removes unfinished files of processes that were killed."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path

PARTIAL = re.compile(r"\..+\.(\d+)-[0-9a-f]{8}\.partial")


def remove_stale(folder: Path) -> None:
    """Removes unfinished files of killed processes from a folder; leaves those being written.

    The writer of a file holds a lock on it (`partial_file`), which ends with its process.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            if (match := PARTIAL.fullmatch(path.name)) and not _is_running(int(match[1])):
                with suppress(OSError):
                    _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    """Removes a file; raises `OSError` if another process has locked it, or locks do not work."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(descriptor)


def _is_running(process: int) -> bool:
    """Returns whether this machine has a process of this id."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to somebody else
        return True
    return process > 0
