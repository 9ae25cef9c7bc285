"""A folder of safetensors files, each with the embeddings of one prompt.

A file is named after the sha256 of everything that determines the embeddings.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from eri_runtime.bundle import cache_folder, damaged_error, open_regular_file, parse_header
from eri_runtime.checks import check_finite
from eri_runtime.errors import EriError, UsageError, short
from eri_runtime.partial_files import remove_stale, write_whole
from eri_runtime.text.conditioning import Condition

Shapes = Mapping[str, tuple[int, ...]]  # the shapes of `embeds` and `pooled`
MAX_HEADER = 4096  # bytes; the header of such a file has 400

log = logging.getLogger(__name__)


class EmbeddingFiles:
    """A folder of prompt embeddings, which any number of processes may share.

    It is only a cache, so its failures never stop a request: an unreadable file counts as absent,
    a file that cannot be written is skipped, and both are logged.

    Attributes:
        folder: The folder; it is created with the first file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._write_failed = self._cleaned = False

    def read(self, key: str, shapes: Shapes) -> Condition | None:
        """Returns the condition stored under `key`, or None if it is absent or damaged.

        A file counts as damaged if its arrays do not have these shapes, do not match the sha256 in
        the file, or are not finite.
        """
        file = self._file(key)
        try:
            return _deserialize(file, key, shapes) if file.exists() else None
        except (EriError, OSError, ValueError, RecursionError) as error:
            log.warning("%s is not used, the prompt is encoded anew: %s", file, error)
            return None

    def write(self, key: str, condition: Condition) -> None:
        """Writes a condition atomically; only the first failure is logged.

        The first call removes the unfinished files of killed processes.
        """
        try:
            write_whole(self._file(key), _serialize(key, condition))
            if not self._cleaned:
                remove_stale(self.folder)
                self._cleaned = True
        except OSError as error:
            if not self._write_failed:
                log.warning("embeddings are not kept in %s: %s", self.folder, error)
            self._write_failed = True

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def embeddings_folder(folder: str | Path | bool | None) -> Path | None:
    """Returns the folder for embeddings: a full path, the user's cache for True, else None.

    Raises `UsageError` unless `folder` is a path, a bool or None.
    """
    if folder is None or isinstance(folder, bool):
        return cache_folder() / "embeddings" if folder else None
    if not isinstance(folder, str | Path) or not str(folder):
        expected = "a folder, or True for the user's own"
        raise UsageError("embeddings", got=short(folder), expected=expected)
    return Path(folder).absolute()  # the working folder may change


def _serialize(key: str, condition: Condition) -> bytes:
    """Returns a safetensors file of the condition, with its key and sha256 as metadata."""
    from safetensors.numpy import save

    tensors = {"embeds": condition.embeds, "pooled": condition.pooled}
    contiguous = {name: np.ascontiguousarray(array, "<f4") for name, array in tensors.items()}
    return save(contiguous, {"key": key, "sha256": _sha256(condition)})


def _deserialize(file: Path, key: str, shapes: Shapes) -> Condition:
    """Reads a condition; raises `EriError`, `ValueError` or `RecursionError` if it is damaged."""
    largest = MAX_HEADER + 4 * sum(map(prod, shapes.values()))
    with open_regular_file(file) as (stream, size):
        if size > largest:
            raise damaged_error(file, f"{size} bytes", f"at most {largest}")
        data = stream.read(largest)
    start = 8 + int.from_bytes(data[:8], "little")
    entries, metadata = parse_header(data[8:start], len(data) - start)
    stored = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
    if stored != {name: ("F32", tuple(shape)) for name, shape in shapes.items()}:
        raise damaged_error(file, short(stored), f"float32 of {short(dict(shapes))}")
    condition = Condition(
        **{
            name: np.frombuffer(data, "<f4", prod(entry.shape), start + entry.begin)
            .reshape(entry.shape)
            .astype(np.float32)
            for name, entry in entries.items()
        }
    )
    if metadata != {"key": key, "sha256": _sha256(condition)}:
        raise damaged_error(
            file, "another prompt's embeddings, or changed ones", "those of its name"
        )
    check_finite(f"{file}: embeds", condition.embeds)
    check_finite(f"{file}: pooled", condition.pooled)
    return condition


def _sha256(condition: Condition) -> str:
    """Returns the sha256 (hex) of the condition's values as little-endian float32."""
    digest = hashlib.sha256()
    for array in (condition.embeds, condition.pooled):
        digest.update(np.ascontiguousarray(array, "<f4").data)
    return digest.hexdigest()
