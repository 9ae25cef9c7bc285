"""The folder of a run over many prompts: images, and a manifest that says which are whole.

`manifest.jsonl` begins with a line about the run; every other line is a finished image, appended
and flushed to the disk once the image is in its place. A run that was killed anywhere is gone on
with by opening its folder again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eri_runtime.errors import UsageError, short
from eri_runtime.executors.base import Closeable
from eri_runtime.images import write_png
from eri_runtime.integrity import sha256
from eri_runtime.jobs import Job, first_seed
from eri_runtime.result import eri_version
from eri_runtime.saving import slug
from eri_runtime.spec import Bundle

if TYPE_CHECKING:
    from PIL.Image import Image

MANIFEST = "manifest.jsonl"
FORMAT = 1
KEY = "eri job"  # the text chunk that holds the digest
STRAY = re.compile(r"\.(\d{5,}_.+\.png|manifest\.jsonl)\.\d+\.partial")
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)  # NFS: EBADF
OUTPUT = "--output"
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A seeded job of a run: its place among all, and the digest it is known by."""

    index: int
    job: Job
    digest: str

    @property
    def file(self) -> str:
        """`00012_a-red-heart_SEED.png`."""
        return f"{self.index:05d}_{slug(self.job.prompt)}_{self.job.seed}.png"


def make_entries(jobs: Iterable[Job], about: Mapping[str, Any]) -> list[Entry]:
    """Entries of complete jobs; `about` is all else that decides what the images are.

    A digest is the sha256 of the words of the job, its index and `about` as JSON.
    """
    entries = []
    for index, job in enumerate(jobs):
        decides = {"about": about, "index": index, **asdict(job)}
        text = json.dumps(decides, sort_keys=True, default=list)
        entries.append(Entry(index, job, hashlib.sha256(text.encode()).hexdigest()))
    return entries


def weights_of(bundle: Bundle) -> dict[str, str]:
    """The sha256 of every component's weights: what makes a bundle another one."""
    return {name: bundle.files[each.weights].sha256 for name, each in bundle.components.items()}


class Run(Closeable):
    """A run's folder, locked until it is closed, so that no other process writes there.

    `seed` is the first job's: the one given, or that of the run that is gone on with, or drawn.
    Raises `UsageError` for a folder that is in use, is another bundle's, or cannot be one.
    """

    def __init__(self, folder: Path, bundle: Bundle, seed: int | None = None) -> None:
        self.folder = folder
        self._manifest, self._lock = -1, _locked(folder)
        try:
            self._header, self._lines, self._torn = _read(folder / MANIFEST)
            weights = weights_of(bundle)
            if self._header and self._header.get("weights") != weights:
                got, fix = f"a run of {short(self._header.get('model'))}", "choose another folder"
                expected = f"one of {bundle.root.resolve().name!r}, or a new folder"
                raise UsageError(f"{OUTPUT} {folder}", got=got, expected=expected, fix=fix)
            known = self._header.get("seed")
            self.seed = first_seed(known if seed is None else seed)
            if not self._header:
                name = bundle.root.resolve().name
                self._header = {"eri_run": FORMAT, "eri": eri_version(), "model": name}
                self._header |= {"weights": weights, "seed": self.seed}
                self._rewrite([])
        except BaseException:
            self.close()
            raise

    def resume(self, entries: Sequence[Entry]) -> list[int]:
        """The indices of the entries that are not here whole; only lines of the others stay.

        An image that has no line is adopted where it carries the digest, as a kill leaves it so.
        Partial files are removed; images of other jobs are left alone.
        """
        for path in self.folder.iterdir():
            if STRAY.fullmatch(path.name):
                path.unlink(missing_ok=True)
        lines = {line["file"]: line for line in self._lines}
        kept, found, pending = [], [], []
        for entry in entries:
            path, line = self.folder / entry.file, lines.get(entry.file)
            if line and line["job"] == entry.digest and _sha256(path) == line["sha256"]:
                kept.append(line)
            elif _carries(path, entry.digest):
                found.append(entry)
            else:
                pending.append(entry.index)
        if self._torn or len(kept) != len(self._lines):
            self._rewrite(kept)
        self._append()
        for entry in found:
            self._write(entry)
        return pending

    def add(self, entry: Entry, image: Image, parameters: str) -> Path:
        """Put an image in its place, then its line in the manifest; the image's path."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        (info.add_text if parameters.isascii() else info.add_itxt)("parameters", parameters)
        info.add_text(KEY, entry.digest)
        path = write_png(image, self.folder / entry.file, pnginfo=info)
        self._write(entry)
        return path

    def close(self) -> None:
        """Let go of the folder."""
        for descriptor in (self._manifest, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._manifest = self._lock = -1

    def _write(self, entry: Entry) -> None:
        path = self.folder / entry.file
        line = {"index": entry.index, "file": entry.file, "sha256": sha256(path)}
        line |= {"job": entry.digest, **asdict(entry.job)}
        _write_all(self._manifest, _encoded(line))

    def _append(self) -> None:
        self._manifest = os.open(self.folder / MANIFEST, os.O_WRONLY | os.O_APPEND)

    def _rewrite(self, lines: Iterable[Line]) -> None:
        """Put a manifest of these lines in the place of the old one, whole or not at all."""
        partial = self.folder / f".{MANIFEST}.{os.getpid()}.partial"
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                _write_all(descriptor, b"".join(map(_encoded, [self._header, *lines])))
            finally:
                os.close(descriptor)
            partial.replace(self.folder / MANIFEST)
        finally:
            partial.unlink(missing_ok=True)
        if self._lock >= 0:
            os.fsync(self._lock)


def _encoded(line: Line) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _write_all(descriptor: int, content: bytes) -> None:
    """All of it, and to the disk."""
    while content:
        content = content[os.write(descriptor, content) :]
    os.fsync(descriptor)


def _locked(folder: Path) -> int:
    """The folder, made if need be and locked; without a lock on a file system that has none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(OUTPUT, got=error, expected="a folder for images") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        got, fix = "a folder that another process writes to", "wait for it, or choose another"
        raise UsageError(f"{OUTPUT} {folder}", got=got, expected="a free one", fix=fix) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(descriptor)
            raise
    return descriptor


def _read(path: Path) -> tuple[dict[str, Any], list[Line], bool]:
    """The first line, those of images, and whether there is anything that is neither.

    Nothing where there is no manifest. Raises `UsageError` for a file that is no manifest.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}, [], False
    except OSError as error:
        raise UsageError(OUTPUT, got=error, expected="a manifest that can be read") from error
    first, *others = content.split(b"\n")
    header = _object(first)
    if header.get("eri_run") != FORMAT or not others:
        got, fix = short(first.decode(errors="replace")), "choose another folder"
        expected = "the manifest of a run of this eri"
        raise UsageError(f"{OUTPUT} {path}", got=got, expected=expected, fix=fix)
    lines: list[Line] = [line for each in others[:-1] if _is_image(line := _object(each))]
    return header, lines, len(lines) + 1 != len(others) or bool(others[-1])


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object; an empty one for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_image(line: Line) -> bool:
    return all(isinstance(line.get(name), str) for name in ("file", "sha256", "job"))


def _sha256(path: Path) -> str | None:
    try:
        return sha256(path)
    except OSError:
        return None


def _carries(path: Path, digest: str) -> bool:
    """Whether `path` is a whole PNG of the job of this digest."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.verify()  # the checksum of every chunk
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
            return bool(image.info.get(KEY) == digest)
    except Exception:  # whatever Pillow makes of bytes that are damaged
        return False
