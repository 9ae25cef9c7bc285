"""The size and sha256 of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eri_runtime.files import open_regular_file

Listener = Callable[[int], object]  # called with the number of bytes just read

CHUNK = 1 << 22  # bytes


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """The size and hash of a file in the bundle.

    Attributes:
        size: Size in bytes.
        sha256: sha256, in hex.
    """

    size: int
    sha256: str


def no_progress(count: int) -> None:
    """Ignores the number of bytes read."""


def sha256(path: Path, on_bytes: Listener = no_progress) -> str:
    """Returns the sha256 (hex) of a file, read in chunks; reports each chunk to `on_bytes`.

    Raises `OSError` if it is no regular file or cannot be read.
    """
    digest = hashlib.sha256()
    with open_regular_file(path) as (file, _):
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()


def file_record(path: Path) -> FileRecord:
    """Returns a file's size and sha256, as the manifest records them."""
    return FileRecord(size=path.stat().st_size, sha256=sha256(path))
