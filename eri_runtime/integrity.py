"""The files of a bundle against the manifest that was published with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from eri_runtime.errors import IntegrityError
from eri_runtime.spec import Bundle, FileRecord

Listener = Callable[[int], object]

CHUNK = 1 << 22
FIX = "copy the bundle again, or export the checkpoint again"


def ignore(count: int) -> None:
    """Listen to nothing."""


def sha256(path: Path, on_bytes: Listener = ignore) -> str:
    """The sha256 of a file in hex, read in chunks; `on_bytes` hears of each."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()


def record(path: Path) -> FileRecord:
    """What the manifest says of a file."""
    return FileRecord(size=path.stat().st_size, sha256=sha256(path))


def verify_sizes(bundle: Bundle) -> None:
    """Raise `IntegrityError` for the first file that is missing or of another size."""
    for name, expected in bundle.files.items():
        path = bundle.path(name)
        size = path.stat().st_size if path.is_file() else None
        if size != expected.size:
            got = "no file" if size is None else f"{size} bytes"
            raise IntegrityError(path, got=got, expected=f"{expected.size} bytes", fix=FIX)


def verify_hashes(bundle: Bundle, names: Iterable[str], on_bytes: Listener = ignore) -> None:
    """Raise `IntegrityError` for the first named file whose sha256 is not the manifest's."""
    for name in names:
        path = bundle.path(name)
        found, expected = sha256(path, on_bytes), bundle.files[name].sha256
        if found != expected:
            expected = f"sha256 {expected[:16]}…"
            raise IntegrityError(path, got=f"sha256 {found[:16]}…", expected=expected, fix=FIX)


def verify_all(bundle: Bundle, on_bytes: Listener = ignore) -> None:
    """Check the size and the sha256 of every file, weights included."""
    verify_sizes(bundle)
    verify_hashes(bundle, bundle.files, on_bytes)


def verify_on_load(bundle: Bundle) -> None:
    """Check every size, and the sha256 of all but the weights and the plans.

    Hashing the weights of a 12-billion-parameter model takes longer than opening it; a truncated
    file is still caught by its size, and `eri inspect` checks the rest. A plan is checked when it
    is read, as it is native code.
    """
    verify_sizes(bundle)
    large = {component.weights for component in bundle.components.values()} | bundle.plans.keys()
    verify_hashes(bundle, [name for name in bundle.files if name not in large])
