"""The tensors of a safetensors file as NumPy arrays, which stay in the file until they are read.

Layout: an unsigned 64-bit header length, that many bytes of JSON, then the tensors without gaps.
https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from eri_runtime.errors import DamagedWeightsError, NonFiniteError, short
from eri_runtime.foreign import LOOKED_AT, foreign_error
from eri_runtime.header import Entry, parse_header

# A thousand times the longest header of these families. The library's limit is 100 MB, which
# hostile JSON turns into gigabytes of empty lists.
MAX_HEADER = 25_000_000

DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(dtype).newbyteorder("<")
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}


@dataclass(frozen=True)
class Header:
    """What a file holds: its tensors by name, counted from byte `start`, and its metadata."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    start: int


class TensorFile(Mapping[str, NDArray[Any]]):
    """A memory-mapped file: each tensor a read-only array over its pages, no byte read for it.

    `metadata` is the file's own. Asking for a tensor of a type NumPy has not raises
    `DamagedWeightsError`. A file that is cut while it is mapped ends the process, as with every
    memory map.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        header = read_header(file)
        self.metadata = header.metadata
        self._entries = header.entries
        self._opened: dict[str, NDArray[Any]] = {}
        with opened(file) as (stream, _):
            self._data = np.memmap(stream, np.uint8, mode="r")[header.start :]

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._opened:
            entry = self._entries[name]
            stored = self._data[entry.begin : entry.end].view(np.ndarray)
            self._opened[name] = stored.view(self._dtype(name, entry)).reshape(entry.shape)
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, by name."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def _dtype(self, name: str, entry: Entry) -> np.dtype[Any]:
        if entry.dtype in DTYPES:
            return DTYPES[entry.dtype]
        raise DamagedWeightsError(
            f"{self.file}: {short(name)}",
            got=f"type {entry.dtype}",
            expected=f"one of {', '.join(DTYPES)}",
            fix="save it again as F16 or BF16",
        )


def read_tensors(file: Path | str) -> TensorFile:
    """The tensors of a safetensors file by name, memory-mapped; F16, F32, ..., BF16 by `ml_dtypes`.

    The header is checked as the library checks it. Raises `DamagedWeightsError` for a file that is
    missing, cut, inconsistent or no safetensors file, and `PickleError` for a pickle.
    """
    return TensorFile(Path(file))


def read_header(file: Path) -> Header:
    """The header of one file: known types, sizes that match, ranges that fill the file.

    Raises `DamagedWeightsError`, or `PickleError` for a pickle under a false name. Names are taken
    as they are: they name weights, never files.
    """
    with opened(file) as (stream, size):
        head = stream.read(LOOKED_AT)
        length = int.from_bytes(head[:8], "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            expected = f"a header of {length} bytes, at most {MAX_HEADER}, and the tensors"
            raise foreign_error(file, head) or damaged(file, f"{size} bytes", expected)
        stream.seek(8)
        raw = stream.read(length)
    try:
        entries, metadata = parse_header(raw, size - 8 - length)
    except (ValueError, RecursionError) as error:
        got = f"an unreadable header ({error})"
        raise foreign_error(file, head) or damaged(file, got, "a safetensors header") from error
    return Header(entries, metadata, 8 + length)


@contextlib.contextmanager
def opened(file: Path) -> Iterator[tuple[BufferedReader, int]]:
    """A regular file and its size in bytes; `DamagedWeightsError` where it cannot be read.

    What a path is comes first: to open a pipe would wait for who writes to it.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise damaged(file, "something that is not a regular file", "a safetensors file")
        with file.open("rb") as stream:
            yield stream, status.st_size
    except OSError as error:
        raise damaged(file, error.strerror or error, "a file that can be read") from error


def damaged(file: Path, got: object, expected: str) -> DamagedWeightsError:
    """The error for a file that is not what it should be."""
    return DamagedWeightsError(
        file, got=got, expected=expected, fix="copy or download the file again"
    )


def rounded(name: str, values: NDArray[np.float32], dtype: DTypeLike) -> NDArray[Any]:
    """Values in a weight's stored type, each rounded once, to nearest and ties to even.

    Values that have that type already come back as they are. Raises `NonFiniteError`, naming the
    weight, for NaN and Inf, and where a value is too large for the type.
    """
    extremes = np.array([values.min(), values.max()] if values.size else [], np.float32)
    with np.errstate(over="ignore"):  # said below, by name
        if not np.isfinite(extremes.astype(dtype).astype(np.float32)).all():
            raise NonFiniteError(
                name,
                got=f"values from {extremes[0]:g} to {extremes[1]:g}",
                expected=f"values that {np.dtype(dtype)} holds",
            )
        return values.astype(dtype, copy=False)
