"""Publishes a bundle complete or not at all, whatever stops its export.

A bundle is built in a hidden sibling folder. Every file is hashed and flushed, the manifest is
written last, and a rename puts the folder in place. An existing bundle is replaced by exchanging
the two names in one step, so a reader finds the old bundle or the new one. The sibling is locked
while its export runs; the kernel drops the lock of a killed export, and the next export to the
same name removes its folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Literal

from eri_export.disk import disk_faults
from eri_runtime.bundle import MANIFEST, Bundle, FileRecord, file_record, manifest
from eri_runtime.errors import ExportError, UsageError
from eri_runtime.unfinished import on_stop, remove_folder, stops_wait

log = logging.getLogger(__name__)

AT_FDCWD = -100  # linux/fcntl.h
RENAME_EXCHANGE = 2  # linux/fs.h
NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)  # NFS: EBADF
RACES = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST)  # another export moved the target first
ATTEMPTS = 100

Lock = Literal["held", "taken", "unsupported"]


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yields a new folder that replaces `target` if the block ends without an exception.

    Folders that killed exports to `target` left behind are removed first. SIGTERM unwinds the
    block like Ctrl-C. Raises `UsageError` if `target` exists and is not a bundle, `DiskError` for a
    disk that is full or fails, and `ExportError` if other exports keep replacing `target`.
    """
    target = Path(os.path.realpath(target))  # a link is kept and then points at the new bundle
    replaces(target)
    with terminated_as_interrupt(), disk_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _reclaim(target)
        with _sibling(target) as folder, disk_faults(target):  # reports the space before removal
            yield folder
            _check_terminated()
            _put(folder, target)


def replaces(target: Path) -> bool:
    """Returns whether a bundle is at `target`; raises `UsageError` if it is something else."""
    target = Path(os.path.realpath(target))
    if os.path.lexists(target) and not _is_bundle(target):
        raise _in_the_way(target)
    return os.path.lexists(target)


def records(folder: Path, known: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
    """Returns size and sha256 of every file below `folder`, by POSIX path relative to it.

    Files in `known` were hashed when they were written and are not read again.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: known.get(name) or file_record(path) for name, path in names.items()}


def write_manifest(bundle: Bundle) -> None:
    """Writes the manifest into `bundle.root` and flushes every file and folder to the disk."""
    (bundle.root / MANIFEST).write_text(manifest.dump(bundle), encoding="utf-8")
    for path in [*bundle.root.rglob("*"), bundle.root]:
        _flush(path)


_TERMINATED = threading.Event()  # set by SIGTERM within `terminated_as_interrupt`


@contextlib.contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM raise `KeyboardInterrupt` in the block, so that it cleans up.

    It works only in the main thread, where signals arrive, and keeps an existing handler.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _TERMINATED.clear()


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _TERMINATED.set()
    raise KeyboardInterrupt(signal.Signals(number).name)


def _check_terminated() -> None:
    """Raises the interrupt of a signal that arrived in a finaliser, where Python only prints it."""
    if _TERMINATED.is_set():
        raise KeyboardInterrupt(signal.SIGTERM.name)


def _is_bundle(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Siblings: `.NAME.0123abcd.partial` is an unfinished bundle or one to be deleted. On a system that
# cannot exchange two names, `.NAME.0123abcd.old` is the old bundle, moved away before the new one
# is in place.


@contextlib.contextmanager
def _sibling(target: Path) -> Iterator[Path]:
    """Yields a new locked folder and removes it at the end if it still has that name."""
    for _ in range(ATTEMPTS):
        folder = _new_name(target)
        forget = on_stop(partial(remove_folder, folder))
        with stops_wait():
            folder.mkdir()
        with _locked(folder) as lock:
            if lock == "taken":  # reclaimed by another export before it was locked
                forget()
                continue
            try:
                yield folder
            finally:
                _remove(folder)
                forget()
            return
    raise _contended(target)


def _remove(folder: Path) -> None:
    """Removes a folder and finishes that after a first interrupt; a second one stops it."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _new_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[Lock]:
    """Tries to lock the folder: yields "taken" if another process holds it, or it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield "taken"
        return
    try:
        yield _lock(descriptor, folder)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> Lock:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.path.samestat(os.fstat(descriptor), folder.lstat())
    except (BlockingIOError, FileNotFoundError):
        return "taken"
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return "unsupported"
    return "held" if same else "taken"


def _reclaim(target: Path) -> None:
    """Removes folders of killed exports to `target`, and undoes an interrupted replacement."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.(partial|old)")
    siblings = [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]
    for folder in sorted(siblings):  # .old is restored, or renamed to .partial and removed
        if folder.is_symlink() or not folder.is_dir():
            continue
        if folder.suffix == ".old":
            _settle(folder, target)
            continue
        with _locked(folder) as lock:
            if lock == "held":
                log.info("%s: removed, its export was killed", folder)
                shutil.rmtree(folder, ignore_errors=True)
            elif lock == "unsupported":
                log.warning("%s: left, as this file system cannot tell if it is in use", folder)


# Putting in place


def _put(folder: Path, target: Path) -> None:
    """Moves `folder` to `target`; an old bundle gets the name of `folder`, or is removed."""
    for _ in range(ATTEMPTS):
        try:
            with stops_wait():
                _place(folder, target)
        except OSError as error:
            if error.errno not in RACES:
                raise
        else:
            _flush(target.parent)
            return
    blocked = os.path.lexists(target) and not _is_bundle(target)
    raise _in_the_way(target) if blocked else _contended(target)


def _place(folder: Path, target: Path) -> None:
    """Tries once; raises an `OSError` of `RACES` if the target appeared or vanished meanwhile."""
    if not os.path.lexists(target):
        folder.rename(target)
    elif not _is_bundle(target):  # or another export has just moved it away
        raise FileExistsError(errno.EEXIST, "not a bundle", str(target))
    elif not _exchange(folder, target):
        _swap(folder, target)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False if the system cannot (renameat2 is Linux's)."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _swap(folder: Path, target: Path) -> None:
    """Renames twice and undoes the first if the second fails; `target` is missing in between."""
    old = folder.with_suffix(".old")
    try:
        target.rename(old)
        folder.rename(target)
    finally:
        _settle(old, target)


def _settle(old: Path, target: Path) -> None:
    """Restores `old` if there is no `target`, else deletes it.

    It needs no lock: each step is a rename, which fails if another export has done it. The folder
    is renamed before it is deleted, because a half-deleted one must not be restored.
    """
    with contextlib.suppress(OSError):
        if not target.exists():
            old.rename(target)
        else:
            condemned = old.rename(_new_name(target))
            shutil.rmtree(condemned, ignore_errors=True)


def _contended(target: Path) -> ExportError:
    return ExportError(
        target,
        got="other exports that keep replacing it",
        expected="one export to a name at a time",
        fix="wait for the others, or choose another output folder",
    )


def _in_the_way(target: Path) -> UsageError:
    return UsageError(
        target,
        got="something that is not a bundle",
        expected="a new name or an old bundle",
        fix="choose another output folder",
    )
