"""Memory-maps the tensors of a safetensors file as NumPy arrays.

Layout: an unsigned 64-bit header length, that many bytes of JSON, then the tensors without gaps.
https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from eri_runtime import files
from eri_runtime.bundle.magic_bytes import LOOKED_AT, other_format_error
from eri_runtime.bundle.safetensors_header import Entry, parse_header
from eri_runtime.errors import DamagedWeightsError, NonFiniteError, NotACheckpointError, short

# A thousand times the longest header of the supported families. The reference implementation
# allows 100 MB, which a malicious header could turn into gigabytes of empty lists.
MAX_HEADER = 25_000_000

DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(dtype).newbyteorder("<")
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
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
    """The header of a safetensors file.

    Attributes:
        entries: The tensors by name.
        metadata: The file's metadata.
        start: Position in the file from which the entries count their bytes.
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    start: int


class TensorFile(Mapping[str, NDArray[Any]]):
    """The tensors of a memory-mapped safetensors file, by name.

    Each tensor is a read-only array over the file's pages; the system reads them on first access.
    Indexing raises `DamagedWeightsError` for a dtype that NumPy and `ml_dtypes` do not have. As
    with every memory map, truncating the file while it is mapped can kill the process.

    Attributes:
        file: Path of the file.
        metadata: The file's metadata.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        header = read_header(file)
        self.metadata = header.metadata
        self._entries = header.entries
        self._opened: dict[str, NDArray[Any]] = {}
        with open_regular_file(file) as (stream, _):
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
        """The shapes of all tensors, by name."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def _dtype(self, name: str, entry: Entry) -> np.dtype[Any]:
        """Returns the NumPy dtype; raises `DamagedWeightsError` if there is none."""
        if entry.dtype in DTYPES:
            return DTYPES[entry.dtype]
        raise DamagedWeightsError(
            f"{self.file}: {short(name)}",
            got=f"type {entry.dtype}",
            expected=f"one of {', '.join(DTYPES)}",
            fix="save it again as F16 or BF16",
        )


def read_tensors(file: Path | str) -> TensorFile:
    """Memory-maps a safetensors file; bfloat16 tensors have the dtype of `ml_dtypes`.

    Raises `NotACheckpointError` if the file is missing or is text, `PickleError` if it is a pickle,
    and `DamagedWeightsError` if it is truncated, inconsistent or otherwise no safetensors file.
    """
    return TensorFile(Path(file))


def read_header(file: Path) -> Header:
    """Reads and checks the header of a safetensors file.

    Raises `NotACheckpointError` if the file is missing or is text, `PickleError` if it is a pickle,
    and `DamagedWeightsError` if it is truncated, inconsistent or otherwise no safetensors file.
    Accepts any tensor name: names are keys, and never become paths.
    """
    with open_regular_file(file) as (stream, size):
        head = stream.read(LOOKED_AT)
        length = int.from_bytes(head[:8], "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            expected = f"a header of {length} bytes, at most {MAX_HEADER}, and the tensors"
            raise other_format_error(file, head) or damaged_error(file, f"{size} bytes", expected)
        stream.seek(8)
        raw = stream.read(length)
    try:
        entries, metadata = parse_header(raw, size - 8 - length)
    except (ValueError, RecursionError) as error:
        got = f"an unreadable header ({error})"
        raise other_format_error(file, head) or damaged_error(
            file, got, "a safetensors header"
        ) from error
    return Header(entries, metadata, 8 + length)


@contextlib.contextmanager
def open_regular_file(file: Path) -> Iterator[tuple[BufferedReader, int]]:
    """Opens a regular file for reading; yields the stream and the size in bytes.

    Raises `NotACheckpointError` if there is no such file, and `DamagedWeightsError` if the path is
    no regular file or cannot be read.
    """
    try:
        with files.open_regular_file(file) as (stream, size):
            yield stream, size
    except FileNotFoundError as error:
        expected, fix = "a safetensors file", "check the path"
        raise NotACheckpointError(file, got="no such file", expected=expected, fix=fix) from error
    except OSError as error:
        raise damaged_error(file, error.strerror or error, "a file that can be read") from error


def damaged_error(file: Path, got: object, expected: str) -> DamagedWeightsError:
    """Returns the error for a file that is truncated, inconsistent or cannot be read."""
    return DamagedWeightsError(
        file, got=got, expected=expected, fix="copy or download the file again"
    )


def round_to(name: str, values: NDArray[np.float32], dtype: DTypeLike) -> NDArray[Any]:
    """Rounds values to a weight's stored dtype, to nearest, ties to even.

    Returns `values` itself if it already has the dtype. Raises `NonFiniteError`, with the weight's
    `name`, for NaN, Inf or a value too large for the dtype.
    """
    extremes = np.array([values.min(), values.max()] if values.size else [], np.float32)
    with np.errstate(over="ignore"):  # raised below, with the name
        if not np.isfinite(extremes.astype(dtype).astype(np.float32)).all():
            raise NonFiniteError(
                name,
                got=f"values from {extremes[0]:g} to {extremes[1]:g}",
                expected=f"values that {np.dtype(dtype)} holds",
            )
        return values.astype(dtype, copy=False)
