"""Tensors in safetensors files: the header is read and checked, the bytes only when asked for.

Layout: an unsigned 64-bit header length, that many bytes of JSON, then the tensors without gaps.
https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from eri_runtime.errors import DamagedWeightsError, short
from eri_runtime.header import Entry
from eri_runtime.tensors import damaged, opened
from eri_runtime.tensors import read_header as read_entries

CHUNK = 1 << 22  # bytes read at a time; more, and each buffer costs fresh pages

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

# torch computes little in 8 bits; float16 holds every one of their values
WIDENED = {torch.float8_e4m3fn: torch.float16, torch.float8_e5m2: torch.float16}


@dataclass(frozen=True)
class Span:
    """`nbytes` bytes of a file from absolute position `start`."""

    file: Path
    start: int
    nbytes: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as bytes of files: its spans one after the other, row-major.

    Most tensors are one span. A layout that fuses rows gives a part of one, a layout that reorders
    them gives several; `transposed`: the spans hold the transpose of a matrix of this `shape`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    spans: tuple[Span, ...]
    transposed: bool = False

    @property
    def file(self) -> Path:
        """Where it begins."""
        return self.spans[0].file

    @property
    def start(self) -> int:
        """Position of its first byte in `file`."""
        return self.spans[0].start

    @property
    def nbytes(self) -> int:
        """Bytes of all spans."""
        return sum(span.nbytes for span in self.spans)

    def chunks(self) -> Iterator[torch.Tensor]:
        """The values in order, as flat tensors of about `CHUNK` bytes or less.

        8-bit floats come as float16. Raises `DamagedWeightsError` for a type torch has not, and
        where the file is gone or shorter than its header said.
        """
        return self._transposed() if self.transposed else self._stored(CHUNK)

    def _transposed(self) -> Iterator[torch.Tensor]:
        """A few rows at a time: the same columns of every stored row, which are all read again."""
        rows, columns = self.shape
        itemsize = self._torch_dtype().itemsize
        whole_rows = max(1, CHUNK // (rows * itemsize)) * rows * itemsize
        few = max(1, CHUNK // (columns * itemsize))
        for first in range(0, rows, few):
            read = self._stored(whole_rows)
            parts = [part.view(-1, rows)[:, first : first + few].clone() for part in read]
            yield torch.cat(parts).T.contiguous().view(-1)

    def _stored(self, size: int) -> Iterator[torch.Tensor]:
        return itertools.chain.from_iterable(self._chunks(span, size) for span in self.spans)

    def _chunks(self, span: Span, size: int) -> Iterator[torch.Tensor]:
        dtype = self._torch_dtype()
        with opened(span.file) as (stream, _):
            stream.seek(span.start)
            for left in range(span.nbytes, 0, -size):
                block = bytearray(min(left, size))
                if stream.readinto(block) != len(block):
                    got = f"end of file inside {short(self.name)}"
                    raise damaged(span.file, got, "all its bytes")
                yield torch.frombuffer(block, dtype=dtype).to(WIDENED.get(dtype, dtype))

    def _torch_dtype(self) -> torch.dtype:
        if self.dtype not in TORCH_DTYPES:
            raise DamagedWeightsError(
                f"{self.file}: {short(self.name)}",
                got=f"type {self.dtype}",
                expected=f"one of {', '.join(TORCH_DTYPES)}",
            )
        return TORCH_DTYPES[self.dtype]


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """The tensors of several shards by name; a name in two shards is `DamagedWeightsError`."""
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in read_header(file):
            if tensor.name in tensors:
                got = f"{short(tensor.name)}, also in {tensors[tensor.name].file.name}"
                raise damaged(file, got, "each name in one shard")
            tensors[tensor.name] = tensor
    return tensors


def read_header(file: Path) -> tuple[StoredTensor, ...]:
    """The tensors of one file; the errors of `eri_runtime.tensors.read_header`."""
    header = read_entries(file)
    return tuple(_tensor(file, header.start, *item) for item in header.entries.items())


def _tensor(file: Path, data: int, name: str, entry: Entry) -> StoredTensor:
    span = Span(file, data + entry.begin, entry.end - entry.begin)
    return StoredTensor(name, entry.dtype, entry.shape, (span,))
