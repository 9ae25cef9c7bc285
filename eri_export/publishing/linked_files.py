"""Changes a part of a bundle: links to the files that stay, and a lock while it is replaced."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from eri_runtime.bundle import Bundle, manifest
from eri_runtime.errors import ExportError


def link_files(bundle: Bundle, names: Iterable[str], folder: Path) -> None:
    """Links files of a bundle into `folder`, by the same names; a file that is there stays."""
    for name in names:
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            _link(bundle.path(name), copy)


def current_bundle(
    before: Bundle, root: Path, names: Iterable[str], *, got: str, expected: str, fix: str
) -> Bundle:
    """Returns the bundle now at `root`; raises `ExportError` if files of `before` are others.

    `names` are those files; `got`, `expected` and `fix` are parts of the error.
    """
    current = manifest.read(root)
    if any(current.files.get(name) != before.files[name] for name in names):
        raise ExportError(root, got=got, expected=expected, fix=fix)
    return current


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Locks the bundle at `root`, so that those who replace it do so one after the other.

    The lock is on the folder itself: whoever waited for one that replaced the folder locks the new
    folder and checks again.
    """
    while True:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), root.stat()):
                yield
                return
        finally:
            os.close(descriptor)


def _link(file: Path, copy: Path) -> None:
    """Makes a hard link, or a copy where the file system has no hard links."""
    with contextlib.suppress(OSError):
        os.link(file.resolve(), copy)
        return
    shutil.copyfile(file, copy)
