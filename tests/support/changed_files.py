"""Copies of a bundle whose files change, or are links as in the cache of the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from eri_runtime.bundle import MANIFEST, sha256


def linked_copy(bundle: Path, folder: Path) -> Path:
    """A snapshot of the Hub's cache: `snapshots/REV/FILE` is a link to `../../blobs/SHA256`."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    for file in [*files_of(bundle), MANIFEST]:
        blob = blobs / sha256(bundle / file)
        shutil.copyfile(bundle / file, blob)
        link_to(blob, snapshot / file)
    return snapshot


def scattered_copy(bundle: Path, folder: Path) -> Path:
    """A bundle whose weights are links to another folder than its graphs are links to."""
    snapshot = linked_copy(bundle, folder)
    for link in snapshot.rglob("*.safetensors"):
        target = folder / "disk" / link.resolve().name
        target.parent.mkdir(exist_ok=True)
        link.resolve().rename(target)
        link.unlink()
        link_to(target, link)
    return snapshot


def link_to(target: Path, link: Path) -> None:
    """Makes a relative link and its folder."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(target, link.parent))


def files_of(bundle: Path) -> list[str]:
    """All files of a bundle but its manifest, by name."""
    files = (path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    return sorted(file for file in files if file != MANIFEST)


def other_contents(file: Path) -> bytes:
    """Contents that could be another bundle's: weights of the same size, a longer text or graph.

    The last bits of every weight's bytes change, so all numbers are finite. Two bytes that extend
    a graph are an empty `doc_string`.
    """
    data = file.read_bytes()
    if file.suffix == ".safetensors":
        start = 8 + int.from_bytes(data[:8], "little")
        return data[:start] + bytes(byte ^ 1 for byte in data[start:])
    return data + (b"\x32\x00" if file.suffix == ".onnx" else b"\n")


def rename_over(file: Path, data: bytes) -> None:
    """Replaces a file as an export or a download does."""
    other = file.with_name("other")
    other.write_bytes(data)
    other.replace(file)


def rewrite(file: Path, data: bytes) -> None:
    """Replaces a file's contents as `cp` does."""
    with file.open("r+b") as stream:
        stream.write(data)
        stream.truncate()


def rewrite_unseen(file: Path, data: bytes) -> None:
    """Rewrites a file and sets its times to what they were."""
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    rewrite(file, data)
    os.utime(file, ns=times)


def remove(file: Path, data: bytes) -> None:
    """Removes a file."""
    del data
    file.unlink()


Change = Callable[[Path, bytes], None]
CHANGES: tuple[Change, ...] = (rename_over, rewrite, rewrite_unseen, remove)


@contextmanager
def changed(file: Path, change: Change) -> Iterator[None]:
    """A context in which a file is changed; afterwards it has its own contents again."""
    data = file.read_bytes()
    change(file, other_contents(file))
    try:
        yield
    finally:
        file.write_bytes(data)
