"""Files and folders that appear complete or not at all, and what killed processes left of them.

An unfinished one lies beside what it becomes, as `.NAME.PID-RANDOM.partial`, and its writer holds a
lock on it. Whatever writes a file or folder that others may read writes it here.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from eri_runtime.files import check_replaceable
from eri_runtime.unfinished import on_stop, remove_folder, stops_wait

LONGEST = 255  # bytes of a file's name
PARTIAL = re.compile(r"\..+\.(\d+)-[0-9a-f]{8}\.partial")
LOCKED_WITHIN = 60  # seconds after which the writer of a new file surely has locked it


@contextmanager
def partial_file(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Context manager that gives a new file beside `path`, open for writing, and its name.

    Creates missing folders. The file has a name of its own in every process and thread, and is
    locked, so that `remove_stale` leaves it alone. At the end it is removed, unless it was renamed.
    Raises `OSError` if `path` is not a file but a device, say, which a rename would replace.
    """
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(_partial_name(path.name))
    forget = on_stop(lambda: partial.unlink(missing_ok=True))
    try:
        with stops_wait():
            opened = partial.open("xb")
        with opened as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file, partial
    finally:
        partial.unlink(missing_ok=True)
        forget()


def complete(partial: Path, path: Path) -> None:
    """Renames a finished file to `path`, in place of an older one."""
    with stops_wait():
        partial.replace(path)


def write_whole(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Writes a file, which replaces an older one in one step.

    Args:
        path: The file; missing folders are created.
        data: Its contents.
        durable: Whether the contents are on the disk before the file appears.

    Raises:
        OSError: If it cannot be written. An older file is then as it was.
    """
    with partial_file(path) as (file, partial):
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())
        complete(partial, path)


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Context manager that gives a new folder, which becomes `path` if no exception ends the block.

    Creates missing parents. Folders that killed processes left of the same name are removed first.
    Raises `OSError` if `path` exists by then and is not an empty folder; nothing is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_folders(path)
    partial = path.with_name(_partial_name(path.name))
    forget = on_stop(lambda: remove_folder(partial))
    with stops_wait():
        partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
        with stops_wait():
            partial.rename(path)
    finally:
        os.close(descriptor)
        shutil.rmtree(partial, ignore_errors=True)
        forget()


def claim(partial: Path, path: Path) -> None:
    """Renames a finished file to a name that must be free, whoever else wants it.

    Raises `FileExistsError` if the name is taken.
    """
    with stops_wait():
        try:
            path.hardlink_to(partial)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: reserve the name by an empty file
            path.touch(exist_ok=False)
            partial.replace(path)


def remove_stale(folder: Path) -> None:
    """Removes unfinished files of killed processes from a folder; leaves those being written.

    The lock of a file ends with its writer's process. On a file system without locks, files stay.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            if (match := PARTIAL.fullmatch(path.name)) is not None:
                with suppress(OSError):
                    _remove_unlocked(path, int(match[1]))


def _remove_stale_folders(path: Path) -> None:
    """Removes unfinished folders of `path` that killed processes left."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)-[0-9a-f]{{8}}\.partial")
    for folder in path.parent.iterdir():
        if (match := pattern.fullmatch(folder.name)) and not folder.is_symlink():
            with suppress(OSError):
                _remove_unlocked_folder(folder, int(match[1]))


def _remove_unlocked_folder(folder: Path, process: int) -> None:
    """Removes a folder as `_remove_unlocked` removes a file; raises `OSError` if it is in use."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _lock_if_left(descriptor, process)
        shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _partial_name(name: str) -> str:
    """Returns a new name of an unfinished file, such as `.fox.png.4711-0123abcd.partial`.

    A name that would be too long is replaced by its hash.
    """
    ending = f".{os.getpid()}-{secrets.token_hex(4)}.partial"
    if len(os.fsencode(name)) + len(ending) + 1 > LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f".{name}{ending}"


def _remove_unlocked(path: Path, process: int) -> None:
    """Removes a file; raises `OSError` if another process has locked it, or locks do not work.

    A new file of a running process may not be locked yet, so it stays. An old one is a killed
    process's, whose number another process has now: in containers the numbers recur.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        _lock_if_left(descriptor, process)
        path.unlink()
    finally:
        os.close(descriptor)


def _lock_if_left(descriptor: int, process: int) -> None:
    """Locks what a killed process left; raises `OSError` if its process may still write it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    is_new = time.time() - os.fstat(descriptor).st_mtime < LOCKED_WITHIN
    if is_new and _is_running(process):
        raise BlockingIOError(f"process {process} has just made it")


def _is_running(process: int) -> bool:
    """Returns whether this machine has a process of this id."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to somebody else
        return True
    return process > 0
