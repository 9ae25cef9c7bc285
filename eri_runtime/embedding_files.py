"""Conditions of one prompt each in safetensors files, under the sha256 of all that decides them."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from eri_runtime.conditioning import Condition
from eri_runtime.errors import EriError, UsageError, short
from eri_runtime.executors.base import check_finite
from eri_runtime.folders import cache_folder
from eri_runtime.header import parse_header
from eri_runtime.tensors import damaged, opened

Shapes = Mapping[str, tuple[int, ...]]  # of `embeds` and `pooled`
MAX_HEADER = 4096  # bytes; a file's own has 400

log = logging.getLogger(__name__)


class EmbeddingFiles:
    """A folder of them, which any number of processes may share.

    It is an aid and never a condition: what cannot be read counts as absent, what cannot be written
    stays away, and both are logged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._refused = False

    def read(self, key: str, shapes: Shapes) -> Condition | None:
        """The condition written under a key, with these shapes; None if it is absent or damaged.

        The bytes are those that were written, and finite: the file holds their sha256.
        """
        file = self._file(key)
        try:
            return _condition(file, key, shapes) if file.exists() else None
        except (EriError, OSError, ValueError, RecursionError) as error:
            log.warning("%s is not used, the prompt is encoded anew: %s", file, error)
            return None

    def write(self, key: str, condition: Condition) -> None:
        """Keep a condition, whole or not at all; the first failure is logged."""
        file = self._file(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{key}.{secrets.token_hex(4)}.partial")
            try:
                partial.write_bytes(_bytes(key, condition))
                partial.replace(file)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            if not self._refused:
                log.warning("embeddings are not kept in %s: %s", self.folder, error)
            self._refused = True

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def folder_of(given: str | Path | bool | None) -> Path | None:
    """The folder that a caller means: True is the user's own; None for none.

    Raises `UsageError` for anything else.
    """
    if given is None or isinstance(given, bool):
        return cache_folder() / "embeddings" if given else None
    if not isinstance(given, str | Path) or not str(given):
        expected = "a folder, or True for the user's own"
        raise UsageError("embeddings", got=short(given), expected=expected)
    return Path(given)


def _bytes(key: str, condition: Condition) -> bytes:
    from safetensors.numpy import save

    tensors = {"embeds": condition.embeds, "pooled": condition.pooled}
    contiguous = {name: np.ascontiguousarray(each, "<f4") for name, each in tensors.items()}
    return save(contiguous, {"key": key, "sha256": _sha256(condition)})


def _condition(file: Path, key: str, shapes: Shapes) -> Condition:
    """What a file holds; raises `EriError`, `ValueError` or `RecursionError` for anything else."""
    most = MAX_HEADER + 4 * sum(map(prod, shapes.values()))
    with opened(file) as (stream, size):
        if size > most:
            raise damaged(file, f"{size} bytes", f"at most {most}")
        data = stream.read(most)
    start = 8 + int.from_bytes(data[:8], "little")
    entries, metadata = parse_header(data[8:start], len(data) - start)
    found = {name: (each.dtype, each.shape) for name, each in entries.items()}
    if found != {name: ("F32", tuple(shape)) for name, shape in shapes.items()}:
        raise damaged(file, short(found), f"float32 of {short(dict(shapes))}")
    condition = Condition(
        **{
            name: np.frombuffer(data, "<f4", prod(each.shape), start + each.begin)
            .reshape(each.shape)
            .astype(np.float32)
            for name, each in entries.items()
        }
    )
    if metadata != {"key": key, "sha256": _sha256(condition)}:
        raise damaged(file, "another prompt's embeddings, or changed ones", "those of its name")
    check_finite(f"{file}: embeds", condition.embeds)
    check_finite(f"{file}: pooled", condition.pooled)
    return condition


def _sha256(condition: Condition) -> str:
    digest = hashlib.sha256()
    for each in (condition.embeds, condition.pooled):
        digest.update(np.ascontiguousarray(each, "<f4").data)
    return digest.hexdigest()
