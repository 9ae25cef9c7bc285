"""Writes the bundle's weights: one safetensors file per component, under the checkpoint's names.

Tensors are converted and checked in chunks, so a model is never in memory as a whole. The bytes are
copied, not linked: a training run that overwrites its checkpoint must not change a published
bundle, and only a file written here has aligned tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import onnx_ir as ir
import torch

from eri_export.checkpoints import StoredTensor, read_headers, safetensors_header
from eri_export.graphs.passes.hidden_weights import weights_of
from eri_export.graphs.passes.values import dtype_of, name_of
from eri_runtime.bundle import FileRecord, Listener, no_progress
from eri_runtime.errors import DamagedWeightsError

ALIGNMENT = 256  # bytes; with less, GPU libraries that read in place have failed

IR_DTYPES: Mapping[torch.dtype, ir.DataType] = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float64: ir.DataType.DOUBLE,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
}
TORCH_DTYPES = {dtype: name for name, dtype in IR_DTYPES.items()}


@dataclass(frozen=True)
class Conversion:
    """A stored tensor, and the type to write it in."""

    source: StoredTensor
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """The bytes it takes in the file."""
        return math.prod(self.source.shape) * self.dtype.itemsize

    def chunks(self) -> Iterator[torch.Tensor]:
        """Yields the converted values; `DamagedWeightsError` for NaN or Inf before or after."""
        for chunk in self.source.chunks():
            converted = chunk.to(self.dtype)
            _check_finite(self.source, chunk, converted)
            yield converted


@dataclass(frozen=True)
class Written:
    """The tensors of a written file by name, and its record for the manifest."""

    tensors: Mapping[str, StoredTensor]
    record: FileRecord


def conversions(model: ir.Model, tensors: Mapping[str, StoredTensor]) -> list[Conversion]:
    """Returns the conversion of each of `model`'s weights to the type it has in the graph."""
    return [
        Conversion(tensors[name_of(value)], TORCH_DTYPES[dtype_of(value)])
        for value in weights_of(model)
    ]


def write_weights(
    file: Path, items: Sequence[Conversion], on_bytes: Listener = no_progress
) -> Written:
    """Writes `items` to a new safetensors file and hashes it; `on_bytes` gets each chunk's size.

    The format allows no gaps, so tensors are ordered by the largest power of two, up to 256, that
    divides their size, the largest first: each starts at a multiple of its own. Raises
    `DamagedWeightsError` for a tensor that is not finite or overflows its type.
    """
    ordered = in_file_order(items)
    digest, size = sha256(), 0
    with file.open("xb") as stream, ThreadPoolExecutor(1) as hasher:
        hashed = hasher.submit(digest.update, b"")
        for part in _parts(ordered):
            hashed.result()  # a part is hashed while it is written and the next one is read
            hashed = hasher.submit(digest.update, part)
            size += stream.write(part)
            on_bytes(len(part))
    return Written(read_headers([file]), FileRecord(size=size, sha256=digest.hexdigest()))


def in_file_order(items: Sequence[Conversion]) -> list[Conversion]:
    """Returns tensors in the order in which `write_weights` writes them."""
    return sorted(items, key=lambda item: (-_alignment(item.nbytes), item.source.name))


def header_of(ordered: Sequence[Conversion]) -> bytes:
    """Returns the header of the file with these tensors, in the order in which they are given."""
    entries = ((each.source.name, each.dtype, each.source.shape, each.nbytes) for each in ordered)
    return safetensors_header(entries, ALIGNMENT)


def bind(model: ir.Model, tensors: Mapping[str, StoredTensor]) -> None:
    """Points every weight of `model` at its bytes in a file next to the graph."""
    for value in weights_of(model):
        tensor = tensors[name_of(value)]
        value.const_value = ir.ExternalTensor(
            tensor.file.name,
            tensor.start,
            tensor.nbytes,
            dtype_of(value),
            shape=ir.Shape(tensor.shape),
            name=tensor.name,
        )


def _parts(ordered: Sequence[Conversion]) -> Iterator[bytes | memoryview]:
    """Yields the file in order: its header, then the converted bytes of each tensor in chunks."""
    yield header_of(ordered)
    for item in ordered:
        for chunk in item.chunks():
            yield chunk.view(torch.uint8).numpy().data


def _alignment(nbytes: int) -> int:
    """Returns the largest power of two, at most `ALIGNMENT`, that divides `nbytes`."""
    return min(nbytes & -nbytes, ALIGNMENT) if nbytes else 1


def _is_finite(values: torch.Tensor) -> bool:
    """Returns whether no value is NaN or Inf, by the smallest and the largest value."""
    if not values.is_floating_point() or not values.numel():
        return True
    low, high = torch.aminmax(values)  # one pass; `isfinite` would allocate a mask of this size
    return math.isfinite(low) and math.isfinite(high)


def _check_finite(source: StoredTensor, before: torch.Tensor, after: torch.Tensor) -> None:
    """Raises `DamagedWeightsError` for NaN or Inf: in the file, or by overflow in a conversion."""
    if _is_finite(after):
        return
    overflow = _is_finite(before)
    peak = float(before.abs().max()) if overflow else float("nan")
    raise DamagedWeightsError(
        f"{source.file}: {source.name!r}",
        got=f"{peak:g}, too large for {after.dtype}" if overflow else "NaN or Inf",
        expected="finite weights",
        fix="export with `--precision bf16` or `fp32`" if overflow else None,
    )
