"""The folder of a run over many prompts: images, and a manifest of those that are finished.

The first line of `manifest.jsonl` describes the run. Every other line is a finished image, appended
and flushed to the disk after the image file is complete. A run that was killed at any moment
resumes when its folder is opened again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eri_runtime.bundle import Bundle, sha256
from eri_runtime.errors import UsageError, short
from eri_runtime.executors import Closeable
from eri_runtime.files import parse_json, read_regular_file
from eri_runtime.images import write_png
from eri_runtime.partial_files import remove_stale, write_whole
from eri_runtime.request import Job, first_seed
from eri_runtime.training import slug
from eri_runtime.version import eri_version

if TYPE_CHECKING:
    from PIL.Image import Image

MANIFEST = "manifest.jsonl"
FORMAT = 1
KEY = "eri job"  # the PNG text chunk that holds the digest
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)  # NFS: EBADF
OUTPUT = "--output"
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A job of a run.

    Attributes:
        index: Index of its prompt.
        job: The job, completed, with its seed.
        digest: sha256 of everything that decides its image.
    """

    index: int
    job: Job
    digest: str

    @property
    def file(self) -> str:
        """Name of its image, such as `00012_a-red-heart_SEED.png`."""
        return f"{self.index:05d}_{slug(self.job.prompt)}_{self.job.seed}.png"


def make_entries(jobs: Iterable[Job], about: Mapping[str, Any]) -> list[Entry]:
    """Returns entries of completed jobs.

    `about` is everything else that decides the images. A digest is the sha256 of a job's fields,
    its index and `about`, as JSON.
    """
    entries = []
    for index, job in enumerate(jobs):
        inputs = {"about": about, "index": index, **asdict(job)}
        text = json.dumps(inputs, sort_keys=True, default=list)
        entries.append(Entry(index, job, hashlib.sha256(text.encode()).hexdigest()))
    return entries


def weight_hashes(bundle: Bundle) -> dict[str, str]:
    """Returns the sha256 of every component's weights, which identify the model."""
    return {name: bundle.files[spec.weights].sha256 for name, spec in bundle.components.items()}


class Run(Closeable):
    """The folder of a run, locked against other processes until it is closed.

    Attributes:
        folder: The folder; created if missing.
        seed: Seed of the first job: the one given, else the one the run began with, else random.

    Raises:
        UsageError: If another process uses the folder, it belongs to another bundle, or the path
            cannot be a folder.
    """

    def __init__(self, folder: Path, bundle: Bundle, seed: int | None = None) -> None:
        """Opens the folder of a new run, or of one to resume."""
        self.folder = folder = folder.absolute()  # the working folder may change
        self._manifest, self._lock = -1, _lock_folder(folder)
        try:
            self._header, self._lines, self._torn = _read_manifest(folder / MANIFEST)
            weights = weight_hashes(bundle)
            if self._header and self._header.get("weights") != weights:
                got, fix = f"a run of {short(self._header.get('model'))}", "choose another folder"
                expected = f"one of {bundle.root.resolve().name!r}, or a new folder"
                raise UsageError(f"{OUTPUT} {folder}", got=got, expected=expected, fix=fix)
            earlier = self._header.get("seed")
            self.seed = first_seed(earlier if seed is None else seed)
            if not self._header:
                name = bundle.root.resolve().name
                self._header = {"eri_run": FORMAT, "eri": eri_version(), "model": name}
                self._header |= {"weights": weights, "seed": self.seed}
                self._rewrite([])
        except BaseException:
            self.close()
            raise

    def resume(self, entries: Sequence[Entry], *, force: bool = False) -> list[int]:
        """Returns the indices of the entries whose images are missing or damaged.

        Without `force` it raises `UsageError`, and changes nothing, if a finished image of other
        settings would be replaced.

        Drops lines of images that are not among the entries. An image without a line whose PNG
        carries the entry's digest counts as finished: the run was killed between the two writes.
        Removes unfinished files of killed processes; leaves images of other jobs alone.
        """
        lines = {line["file"]: line for line in self._lines}
        if not force:
            self._check_replaced(entries, lines)
        remove_stale(self.folder)
        finished, unlisted, pending = [], [], []
        for entry in entries:
            path, line = self.folder / entry.file, lines.get(entry.file)
            if line and line["job"] == entry.digest and _sha256(path) == line["sha256"]:
                finished.append(line)
            elif _has_digest(path, entry.digest):
                unlisted.append(entry)
            else:
                pending.append(entry.index)
        if self._torn or len(finished) != len(self._lines):
            self._rewrite(finished)
        self._open_manifest()
        for entry in unlisted:
            self._append(entry)
        return pending

    def _check_replaced(self, entries: Sequence[Entry], lines: Mapping[str, Line]) -> None:
        """Raises `UsageError` if an entry has the name of a finished image of other settings."""
        for entry in entries:
            line = lines.get(entry.file)
            if line and line["job"] != entry.digest and (self.folder / entry.file).exists():
                raise UsageError(
                    f"{OUTPUT} {self.folder / entry.file}",
                    got="an image that was drawn with other settings",
                    expected="a folder of the same settings, or a new one",
                    fix="choose another folder, or add --force to draw such images again",
                )

    def add(self, entry: Entry, image: Image, parameters: str) -> Path:
        """Writes an image, then its line in the manifest; returns the image's path."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        (info.add_text if parameters.isascii() else info.add_itxt)("parameters", parameters)
        info.add_text(KEY, entry.digest)
        path = write_png(image, self.folder / entry.file, pnginfo=info)
        self._append(entry)
        return path

    def close(self) -> None:
        """Closes the manifest and unlocks the folder."""
        for descriptor in (self._manifest, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._manifest = self._lock = -1

    def _append(self, entry: Entry) -> None:
        """Appends the line of a finished image to the manifest."""
        path = self.folder / entry.file
        line = {"index": entry.index, "file": entry.file, "sha256": sha256(path)}
        line |= {"job": entry.digest, **asdict(entry.job)}
        _write_all(self._manifest, _encode(line))

    def _open_manifest(self) -> None:
        """Opens the manifest for appending."""
        self._manifest = os.open(self.folder / MANIFEST, os.O_WRONLY | os.O_APPEND)

    def _rewrite(self, lines: Iterable[Line]) -> None:
        """Replaces the manifest, atomically, by one with the header and these lines."""
        content = b"".join(map(_encode, [self._header, *lines]))
        write_whole(self.folder / MANIFEST, content, durable=True)
        if self._lock >= 0:
            os.fsync(self._lock)


def _encode(line: Line) -> bytes:
    """Returns a line of the manifest as UTF-8."""
    return json.dumps(line).encode() + b"\n"


def _write_all(descriptor: int, content: bytes) -> None:
    """Writes all of `content` and flushes it to the disk."""
    while content:
        content = content[os.write(descriptor, content) :]
    os.fsync(descriptor)


def _lock_folder(folder: Path) -> int:
    """Creates and locks a folder; returns its descriptor.

    On a file system without locks the folder stays unlocked.
    """
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


def _read_manifest(path: Path) -> tuple[dict[str, Any], list[Line], bool]:
    """Returns the header, the lines of images, and whether any other line is damaged.

    All are empty if there is no manifest. Raises `UsageError` for a file that is no manifest.
    """
    try:
        content = read_regular_file(path)
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
    lines: list[Line] = [line for each in others[:-1] if _is_image_line(line := _object(each))]
    return header, lines, len(lines) + 1 != len(others) or bool(others[-1])


def _object(text: bytes) -> dict[str, Any]:
    """Parses a JSON object; returns an empty one for anything else."""
    try:
        value = parse_json(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _is_image_line(line: Line) -> bool:
    """Whether a line has the fields of a finished image."""
    return all(isinstance(line.get(name), str) for name in ("file", "sha256", "job"))


def _sha256(path: Path) -> str | None:
    """Returns the sha256 of a file, or None if it cannot be read."""
    try:
        return sha256(path)
    except OSError:
        return None


def _has_digest(path: Path, digest: str) -> bool:
    """Whether `path` is an undamaged PNG file that carries this digest."""
    from PIL import Image

    try:
        content = BytesIO(read_regular_file(path))
        with Image.open(content, formats=("PNG",)) as image:
            image.verify()  # the checksum of every chunk
        with Image.open(content, formats=("PNG",)) as image:
            image.load()
            return bool(image.info.get(KEY) == digest)
    except Exception:  # Pillow raises many kinds of errors for damaged files
        return False
