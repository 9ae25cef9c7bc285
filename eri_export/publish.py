"""A bundle appears complete or not at all.

It is built in a hidden sibling folder, every file is hashed and flushed, the manifest is written
last, and a rename puts it in place. Where a bundle is already there, one exchange of the two names
does it, so that a reader finds the old one or the new one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from eri_runtime import manifest
from eri_runtime.errors import UsageError
from eri_runtime.integrity import record
from eri_runtime.spec import MANIFEST, Bundle, FileRecord

AT_FDCWD = -100  # linux/fcntl.h
RENAME_EXCHANGE = 2  # linux/fs.h


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when the block ends without an exception.

    Raises `UsageError` where something is in the way that is not a bundle.
    """
    target = target.absolute()
    if target.exists() and not (target / MANIFEST).is_file():
        raise UsageError(
            target,
            got="something that is not a bundle",
            expected="a new name or an old bundle",
            fix="choose another output folder",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    folder.mkdir()
    try:
        yield folder
        _put(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def records(folder: Path) -> dict[str, FileRecord]:
    """Size and sha256 of every file below `folder`, by POSIX path relative to it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): record(path) for path in files}


def write_manifest(bundle: Bundle) -> None:
    """Write the manifest into `bundle.root` and flush every file and folder to the disk."""
    (bundle.root / MANIFEST).write_text(manifest.dump(bundle), encoding="utf-8")
    for path in [*bundle.root.rglob("*"), bundle.root]:
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(folder: Path, target: Path) -> None:
    """Move `folder` to `target`; what was there is left under the name of `folder`."""
    if not target.exists():
        folder.rename(target)
    elif not _exchange(folder, target):
        _swap(folder, target)
    _flush(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system cannot (renameat2 is Linux's)."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _swap(folder: Path, target: Path) -> None:
    """Two renames, undone if the second fails: for a moment there is no `target`."""
    old = folder.with_suffix(".old")
    target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        old.rename(target)
        raise
    old.rename(folder)
