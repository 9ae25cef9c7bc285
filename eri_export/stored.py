"""Tensors in safetensors files: the header is read and checked, the bytes only when asked for.

Layout: an unsigned 64-bit header length, that many bytes of JSON, then the tensors without gaps.
https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eri_runtime.errors import DamagedWeightsError

MAX_HEADER = 100_000_000  # the limit of the safetensors library
CHUNK = 1 << 24  # bytes read at a time; a multiple of every element size

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SAFETENSORS_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


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
        """The values in order, as flat tensors of at most `CHUNK` bytes; transposed ones as one."""
        chunks = itertools.chain.from_iterable(map(self._chunks, self.spans))
        if not self.transposed:
            return chunks
        rows, columns = self.shape
        return iter([torch.cat([*chunks]).view(columns, rows).T.contiguous().view(-1)])

    def _chunks(self, span: Span) -> Iterator[torch.Tensor]:
        dtype = TORCH_DTYPES[self.dtype]
        with span.file.open("rb") as stream:
            stream.seek(span.start)
            left = span.nbytes
            while left:
                block = bytearray(stream.read(min(left, CHUNK)))
                if not block:
                    raise _damaged(span.file, f"end of file inside {self.name!r}", "all its bytes")
                left -= len(block)
                yield torch.frombuffer(block, dtype=dtype)


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """The tensors of several shards by name; a name in two shards is `DamagedWeightsError`."""
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in read_header(file):
            if tensor.name in tensors:
                other = tensors[tensor.name].file.name
                raise _damaged(file, f"{tensor.name!r}, also in {other}", "each name in one shard")
            tensors[tensor.name] = tensor
    return tensors


def read_header(file: Path) -> tuple[StoredTensor, ...]:
    """The tensors of one file, checked: known types, sizes that match, ranges inside the file.

    Raises `DamagedWeightsError`.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise _damaged(file, f"{size} bytes", f"a header of {length} bytes and the tensors")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        tensors = tuple(_tensor(file, 8 + length, name, entry) for name, entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DamagedWeightsError):
            raise
        raise _damaged(file, f"an unreadable header ({error})", "a safetensors header") from error
    _check_ranges(file, 8 + length, size, tensors)
    return tensors


def _tensor(file: Path, data: int, name: str, entry: Mapping[str, Any]) -> StoredTensor:
    dtype, shape = entry["dtype"], tuple(int(size) for size in entry["shape"])
    begin, end = (int(offset) for offset in entry["data_offsets"])
    if dtype not in TORCH_DTYPES:
        raise _damaged(file, f"{name!r} of type {dtype}", f"one of {', '.join(TORCH_DTYPES)}")
    if end - begin != math.prod(shape) * TORCH_DTYPES[dtype].itemsize:
        raise _damaged(file, f"{name!r} of {end - begin} bytes", f"{dtype} {list(shape)}")
    return StoredTensor(name, dtype, shape, (Span(file, data + begin, end - begin),))


def _check_ranges(file: Path, data: int, size: int, tensors: Iterable[StoredTensor]) -> None:
    """The format's own rule: the ranges follow one another and end where the file ends."""
    position = data
    for tensor in sorted(tensors, key=lambda t: (t.start, t.nbytes)):
        if tensor.start != position:
            raise _damaged(file, f"{tensor.name!r} at byte {tensor.start}", f"byte {position}")
        position += tensor.nbytes
    if position != size:
        raise _damaged(file, f"{size} bytes", f"{position} bytes, by the header")


def _damaged(file: Path, got: str, expected: str) -> DamagedWeightsError:
    return DamagedWeightsError(
        file, got=got, expected=expected, fix="copy or download the file again"
    )
