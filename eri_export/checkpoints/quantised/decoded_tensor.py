"""Tensors that are dequantised when their chunks are read, a few rows at a time.

The spans of a `DecodedTensor` are packed bytes. A part of it, such as the queries in a fused
matrix, has other spans; the position of a span tells which rows it holds, and so which scales
apply.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from eri_export.checkpoints.stored_tensors import TORCH_DTYPES, StoredTensor
from eri_runtime.errors import DamagedWeightsError, short

REAL = tuple(name for name, dtype in TORCH_DTYPES.items() if dtype.is_floating_point)

# packed bytes of some rows, number of the first of them -> their values, flat, in float32
Decode = Callable[[bytearray, int], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Decoder(ABC):
    """How the rows of one quantised tensor become numbers.

    Attributes:
        packed: The whole quantised tensor as it is stored.
        values: The number of values in a row.
        row_bytes: The number of packed bytes in a row.
    """

    packed: StoredTensor
    values: int
    row_bytes: int

    @abstractmethod
    def load(self) -> Decode:
        """Reads the scales and returns the function that dequantises rows.

        Raises `DamagedWeightsError` for scales that are not finite.
        """


@dataclass(frozen=True, kw_only=True)
class DecodedTensor(StoredTensor):
    """A quantised tensor that reads as float32; its spans are ranges of whole packed rows.

    Attributes:
        decoder: Dequantises its rows.
        format: The name of the format, such as "Q4_K".
    """

    decoder: Decoder
    format: str

    @property
    def stored_as(self) -> str:
        """The name of the quantised format."""
        return self.format

    def _stored(self, size: int) -> Iterator[torch.Tensor]:
        """Yields the float32 values of as many rows as take `size` bytes, at least of one."""
        decoder = self.decoder
        if not self.nbytes:
            return
        decode = decoder.load()
        step = max(1, size // max(1, 4 * decoder.values)) * decoder.row_bytes
        for span in self.spans:
            start = span.start - decoder.packed.start
            if start % decoder.row_bytes or span.nbytes % decoder.row_bytes:
                got = f"a part of {span.nbytes} bytes of rows of {decoder.row_bytes}"
                raise damaged(self, got, "parts of whole rows")
            row = start // decoder.row_bytes
            for block in self.read_span(span, step):
                yield decode(block, row)
                row += len(block) // decoder.row_bytes


def decoded(decoder: Decoder, shape: tuple[int, ...], form: str) -> DecodedTensor:
    """Returns the tensor of this `shape` that `decoder` reads."""
    packed = decoder.packed
    return DecodedTensor(packed.name, "F32", shape, packed.spans, decoder=decoder, format=form)


def bytes_as(dtype: torch.dtype) -> torch.Tensor:
    """Returns what each of the 256 bytes is as a number of an 8-bit type, in float32."""
    return torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32)


def look_up(table: torch.Tensor, block: bytearray) -> torch.Tensor:
    """Returns the entry of each byte, one after another; `table` has 256 rows.

    NumPy takes a fifth of the time that torch needs to index or to convert 8-bit floats.
    """
    return torch.from_numpy(np.take(table.numpy(), np.frombuffer(block, np.uint8), axis=0)).view(-1)


def pairs_of(table: torch.Tensor) -> torch.Tensor:
    """Returns what each byte is as two indices into `table`, the high bits first: [256, 2]."""
    return torch.stack([table.repeat_interleave(16), table.repeat(16)], dim=-1)


def read_bytes(tensor: StoredTensor) -> torch.Tensor:
    """Reads a small tensor's bytes, flat, as uint8."""
    blocks = (
        block for span in tensor.spans for block in tensor.read_span(span, max(1, span.nbytes))
    )
    return torch.frombuffer(bytearray(b"".join(blocks)) or bytearray(1), dtype=torch.uint8)[
        : tensor.nbytes
    ]


def read_scales(tensor: StoredTensor) -> torch.Tensor:
    """Reads a small tensor of real numbers, flat, in float32.

    Raises `DamagedWeightsError` for NaN, Inf or a type that is not real.
    """
    if tensor.dtype not in REAL:
        raise damaged(tensor, f"type {tensor.dtype}", f"one of {', '.join(REAL)}")
    values = read_bytes(tensor).view(TORCH_DTYPES[tensor.dtype]).to(torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise damaged(tensor, "NaN or Inf", "finite scales")
    return values


def check_count(tensor: StoredTensor, *counts: int) -> None:
    """Raises `DamagedWeightsError` unless the tensor has one of these numbers of elements."""
    if math.prod(tensor.shape) not in counts:
        expected = f"{' or '.join(map(str, sorted(set(counts))))} elements"
        raise damaged(tensor, f"shape {short(list(tensor.shape))}", expected)


def check_type(tensor: StoredTensor, *dtypes: str) -> None:
    """Raises `DamagedWeightsError` unless the tensor has one of these types."""
    if tensor.dtype not in dtypes:
        raise damaged(tensor, f"type {tensor.dtype}", " or ".join(dtypes))


def damaged(tensor: StoredTensor, got: str, expected: str) -> DamagedWeightsError:
    """Returns the error for a quantised tensor, or a part of one, that cannot be right."""
    return DamagedWeightsError(f"{tensor.file}: {short(tensor.name)}", got=got, expected=expected)
