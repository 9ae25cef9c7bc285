"""Notices files of a bundle that change on the disk after the bundle was read.

Components open lazily and read their weights as pages of a file, so a file that is replaced or
rewritten could give a picture of two models. The state of every file is noted when the manifest is
read. `Pins.check` compares before a file is opened, and before and after it is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from eri_runtime.bundle.hashes import FileRecord, sha256
from eri_runtime.errors import IntegrityError

FIX = "load the bundle again"
EXPECTED = "the file as it was when the bundle was loaded"


class FileState(NamedTuple):
    """What tells a file that was replaced or rewritten from the one before.

    Attributes:
        device: Number of its file system.
        inode: Its number there; a file that is renamed over it has another.
        size: Its size in bytes.
        modified: Time of its last write, in ns; anyone can set it.
        changed: Time of its last write or change of links, mode or times, in ns.
    """

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    def same_writes(self, other: FileState | None) -> bool:
        """Returns whether `other` is this file with no write between, if nobody set times back.

        Compares states that are moments apart: a new hard link or mode in that moment, which
        changes nothing but `changed`, is no fault.
        """
        return other is not None and self[:4] == other[:4]


def file_state(path: str | Path) -> FileState | None:
    """Returns the state of the file that `path` leads to, or None if there is none."""
    found = _numbers(path)
    return None if found is None else FileState(*found)


def _numbers(path: str | Path) -> tuple[int, int, int, int, int] | None:
    """Returns the numbers of `file_state`, which equal it and cost less: every step asks."""
    try:
        status = os.stat(path)  # noqa: PTH116  takes a text too
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Pins:
    """The states of a bundle's files when its manifest was read.

    A file of another state is hashed once. If it is still the manifest's, for example after
    `touch`, a hard link or the same bundle copied again, its new state counts from then on.
    """

    def __init__(self, states: Mapping[str, FileState | None]) -> None:
        """Takes the states by name, None for a file that is missing."""
        self._states = dict(states)
        self._refused: dict[str, FileState] = {}  # states of files with other contents

    def check(self, name: str, path: str, record: FileRecord, *, held: bool = False) -> None:
        """Raises `IntegrityError` if a file is no longer what it was.

        Args:
            name: Its name in the manifest.
            path: Where it is.
            record: Its size and sha256 in the manifest.
            held: Whether an engine has it open. Such a file may be renamed over or removed,
                because the engine keeps the old one, but must not be rewritten.
        """
        pinned, numbers = self._states[name], _numbers(path)
        if numbers is not None and numbers == pinned:
            return
        found = None if numbers is None else FileState(*numbers)
        if held and not _same_file(found, pinned):
            return
        if found is None:
            raise IntegrityError(path, got="no file", expected=EXPECTED, fix=FIX)
        if found != self._refused.get(name):
            if _is_recorded(Path(path), found, record):
                self._states[name] = found
                return
            self._refused[name] = found
        raise IntegrityError(path, got=_change(found, pinned), expected=EXPECTED, fix=FIX)


def _same_file(one: FileState | None, other: FileState | None) -> bool:
    """Returns whether both are states of one file."""
    return one is not None and other is not None and one[:2] == other[:2]


def _is_recorded(path: Path, state: FileState, record: FileRecord) -> bool:
    """Returns whether the file in this state has the manifest's contents."""
    try:
        same = state.size == record.size and sha256(path) == record.sha256
    except OSError:
        return False
    return same and state.same_writes(file_state(path))


def _change(found: FileState, pinned: FileState | None) -> str:
    """Describes what happened to a file with other contents."""
    if pinned is None:
        return "a file that was not there"
    what = "a rewritten file" if _same_file(found, pinned) else "another file in its place"
    if found.size == pinned.size:
        return f"{what}, of {found.size} bytes and other contents"
    return f"{what}, of {found.size} bytes instead of {pinned.size}"
