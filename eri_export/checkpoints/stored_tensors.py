"""Tensors in safetensors files: headers are read and checked, the bytes are read on demand.

Layout: an unsigned 64-bit header length, that many bytes of JSON, then the tensors without gaps.
https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from eri_runtime.bundle import Entry, damaged_error, open_regular_file
from eri_runtime.bundle import read_header as read_entries
from eri_runtime.errors import DamagedWeightsError, short

CHUNK = 1 << 22  # bytes read at a time; a larger buffer needs fresh pages every time

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SAFETENSORS_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

# torch has few operations in 8 bits; float16 holds all values of these types
WIDENED = {torch.float8_e4m3fn: torch.float16, torch.float8_e5m2: torch.float16}


@dataclass(frozen=True)
class Span:
    """`nbytes` bytes of a file from absolute position `start`."""

    file: Path
    start: int
    nbytes: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as byte ranges of files, concatenated, row-major.

    Most tensors are one span. In a layout that fuses matrices a tensor is a part of a span, in one
    that reorders rows it is several spans.

    Attributes:
        name: The tensor's name.
        dtype: Its type, as safetensors names it, such as "BF16".
        shape: Its shape.
        spans: Where its bytes are stored.
        transposed: Whether the spans hold the transpose of a matrix of this `shape`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    spans: tuple[Span, ...]
    transposed: bool = False

    @property
    def file(self) -> Path:
        """The file with its first byte."""
        return self.spans[0].file

    @property
    def start(self) -> int:
        """The position of its first byte in `file`."""
        return self.spans[0].start

    @property
    def nbytes(self) -> int:
        """The bytes of all spans."""
        return sum(span.nbytes for span in self.spans)

    @property
    def stored_as(self) -> str:
        """The name of the format of its bytes: its type, or that of a quantised tensor."""
        return self.dtype

    def chunks(self) -> Iterator[torch.Tensor]:
        """Yields the values in order, as flat tensors of about `CHUNK` bytes or less.

        8-bit floats are converted to float16. Raises `DamagedWeightsError` for a type that torch
        does not have, and if the file is missing or shorter than its header says.
        """
        return self._transposed() if self.transposed else self._stored(CHUNK)

    def _transposed(self) -> Iterator[torch.Tensor]:
        """Yields a few rows at a time; for each chunk all stored rows are read again."""
        rows, columns = self.shape
        itemsize = self._torch_dtype().itemsize
        whole_rows = max(1, CHUNK // (rows * itemsize)) * rows * itemsize
        count = max(1, CHUNK // (columns * itemsize))
        for first in range(0, rows, count):
            stored = self._stored(whole_rows)
            parts = [part.view(-1, rows)[:, first : first + count].clone() for part in stored]
            yield torch.cat(parts).T.contiguous().view(-1)

    def _stored(self, size: int) -> Iterator[torch.Tensor]:
        return itertools.chain.from_iterable(self._chunks(span, size) for span in self.spans)

    def _chunks(self, span: Span, size: int) -> Iterator[torch.Tensor]:
        dtype = self._torch_dtype()
        for block in self.read_span(span, size):
            yield torch.frombuffer(block, dtype=dtype).to(WIDENED.get(dtype, dtype))

    def read_span(self, span: Span, size: int) -> Iterator[bytearray]:
        """Yields the bytes of a span, `size` at a time.

        Raises `NotACheckpointError` if the file is gone, `DamagedWeightsError` if it is too short.
        """
        with open_regular_file(span.file) as (stream, _):
            stream.seek(span.start)
            for left in range(span.nbytes, 0, -size):
                block = bytearray(min(left, size))
                if stream.readinto(block) != len(block):
                    got = f"end of file inside {short(self.name)}"
                    raise damaged_error(span.file, got, "all its bytes")
                yield block

    def _torch_dtype(self) -> torch.dtype:
        if self.dtype not in TORCH_DTYPES:
            raise DamagedWeightsError(
                f"{self.file}: {short(self.name)}",
                got=f"type {self.dtype}",
                expected=f"one of {', '.join(TORCH_DTYPES)}",
            )
        return TORCH_DTYPES[self.dtype]


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Returns the tensors of several shards by name.

    Raises `DamagedWeightsError` for a name that is in two shards, and the errors of `read_header`.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in read_header(file):
            if tensor.name in tensors:
                got = f"{short(tensor.name)}, also in {tensors[tensor.name].file.name}"
                raise damaged_error(file, got, "each name in one shard")
            tensors[tensor.name] = tensor
    return tensors


def read_header(file: Path) -> tuple[StoredTensor, ...]:
    """Returns the tensors of one file.

    Raises the errors of `eri_runtime.bundle.read_header`.
    """
    header = read_entries(file)
    return tuple(_tensor(file, header.start, *item) for item in header.entries.items())


def _tensor(file: Path, data: int, name: str, entry: Entry) -> StoredTensor:
    span = Span(file, data + entry.begin, entry.end - entry.begin)
    return StoredTensor(name, entry.dtype, entry.shape, (span,))
