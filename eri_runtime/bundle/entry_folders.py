"""Files that may be deleted at any time, each under the hash of what it depends on.

An entry is written whole or not at all, compared with its sha256 when it is read, and removed when
others were used later and there are too many. Any number of processes may share a folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eri_runtime.bundle.user_folders import cache_folder
from eri_runtime.files import read_regular_file
from eri_runtime.partial_files import remove_stale, write_whole

log = logging.getLogger(__name__)

MOST_ENTRIES = 64  # in one folder
MOST_BYTES = 1 << 28  # in one folder
DIGEST = 32  # bytes of a sha256
FOLDER = "compiled"


@dataclass(frozen=True)
class EntryFolders:
    """Entries of one kind, in a folder beside what they belong to or in another one.

    They are only a cache: whatever fails is logged, and then there is no entry.

    Attributes:
        suffix: The ending of the entries' names.
        beside: The folder that is preferred. Its parent must exist.
        fallback: The folder for new entries if the first cannot be written. None: no other.
    """

    suffix: str
    beside: Path
    fallback: Path | None

    def read(self, key: str) -> bytes | None:
        """Returns the entry of a key; None if there is none or it is damaged."""
        for path in self._paths(key):
            data = _content(path)
            if data is None:
                continue
            if data[:DIGEST] == _digest(key, data[DIGEST:]):
                with suppress(OSError):  # another user's, or a read-only file system
                    os.utime(path)
                return data[DIGEST:]
            log.warning("%s is damaged, and made again", path)
            _remove(path)
        return None

    @property
    def any(self) -> bool:
        """Whether there is an entry of any key."""
        folders = [folder for folder in (self.beside, self.fallback) if folder is not None]
        return any(True for folder in folders for _ in folder.glob(f"*{self.suffix}"))

    def write(self, key: str, data: bytes) -> None:
        """Writes the entry of a key, and removes the least recently used if there are too many."""
        if len(data) + DIGEST > MOST_BYTES:
            log.info("not kept, because it has %d bytes", len(data))
            return
        for path in self._paths(key):
            folder = path.parent
            try:
                folder.mkdir(exist_ok=True, parents=folder != self.beside)
                write_whole(path, _digest(key, data) + data)
            except OSError as error:
                log.info("%s is not written: %s", path, error)
                continue
            remove_stale(folder)
            self._trim(folder)
            return

    def remove(self, key: str) -> None:
        """Removes the entry of a key, which its reader could not use."""
        for path in self._paths(key):
            _remove(path)

    def _paths(self, key: str) -> Iterator[Path]:
        """Yields the places of an entry, the preferred one first."""
        name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}{self.suffix}"
        yield self.beside / name
        if self.fallback is not None:
            yield self.fallback / name

    def _trim(self, folder: Path) -> None:
        """Removes the entries that were used least recently until the others are few enough."""
        found = []
        for path in folder.glob(f"*{self.suffix}"):
            with suppress(OSError):  # another process removed it
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        total = 0
        for number, (_, size, path) in enumerate(sorted(found, reverse=True), start=1):
            total += size
            if number > MOST_ENTRIES or total > MOST_BYTES:
                _remove(path)


def kept_beside(root: Path, suffix: str) -> EntryFolders:
    """Returns where entries of a bundle lie: in its folder, or in the user's cache folder.

    Args:
        root: The bundle's folder.
        suffix: The ending of the entries' names, by their kind.
    """
    fallback = None
    with suppress(RuntimeError):  # a user without a home
        fallback = cache_folder() / FOLDER
    return EntryFolders(suffix, root / FOLDER, fallback)


def _content(path: Path) -> bytes | None:
    """Returns what a file holds, or None if there is none or it cannot be read."""
    try:
        return read_regular_file(path, MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        log.info("%s is not read: %s", path, error)
        return None


def _digest(key: str, data: bytes) -> bytes:
    """Returns the sha256 of an entry, which another key's does not have."""
    digest = hashlib.sha256(hashlib.sha256(key.encode()).digest())
    digest.update(data)
    return digest.digest()


def _remove(path: Path) -> None:
    """Removes an entry, if it can be removed."""
    with suppress(OSError):
        path.unlink()
