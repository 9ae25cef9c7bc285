"""The bundle's own weights: one safetensors file a component, under the checkpoint's names.

Tensors are streamed in chunks, converted and checked on the way, so no model is ever in memory.
The bytes are copied rather than linked: a training run that saves over its checkpoint must not
change a published bundle, and only a file written here has its tensors aligned.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import onnx_ir as ir
import torch

from eri_export.passes.hidden_weights import weights_of
from eri_export.passes.values import dtype_of, name_of
from eri_export.stored import SAFETENSORS_DTYPES, StoredTensor, read_headers
from eri_runtime.errors import DamagedWeightsError
from eri_runtime.integrity import Listener, ignore
from eri_runtime.spec import FileRecord

ALIGNMENT = 256  # bytes; below this, GPU libraries reading in place have failed

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
    """A stored tensor, the type to write it in, and a narrower one to round to on the way."""

    source: StoredTensor
    dtype: torch.dtype
    rounded: torch.dtype | None = None

    @property
    def nbytes(self) -> int:
        """Bytes once written."""
        return math.prod(self.source.shape) * self.dtype.itemsize

    def chunks(self) -> Iterator[torch.Tensor]:
        """The converted values; `DamagedWeightsError` for NaN or Inf before or after."""
        for chunk in self.source.chunks():
            converted = chunk.to(self.rounded or self.dtype).to(self.dtype)
            _check_finite(self.source, chunk, converted)
            yield converted


@dataclass(frozen=True)
class Written:
    """The tensors of a file by name, and what the manifest says of it."""

    tensors: Mapping[str, StoredTensor]
    record: FileRecord


def conversions(model: ir.Model, tensors: Mapping[str, StoredTensor]) -> list[Conversion]:
    """What the weights of `model` need from the checkpoint: exactly those, in the graph's types."""
    return [
        Conversion(tensors[name_of(value)], TORCH_DTYPES[dtype_of(value)])
        for value in weights_of(model)
    ]


def write_weights(file: Path, items: Sequence[Conversion], on_bytes: Listener = ignore) -> Written:
    """Write `items` to a new safetensors file, hashed on the way; `on_bytes` hears of each chunk.

    The format allows no gaps, so the tensors are in order of the power of two that divides their
    size: each starts at a multiple of its own, and all whose size is one at a multiple of 256.
    Raises `DamagedWeightsError` for a tensor that is not finite, or too large for its type.
    """
    ordered = sorted(items, key=lambda item: (-_alignment(item.nbytes), item.source.name))
    digest, size = sha256(), 0
    with file.open("xb") as stream, ThreadPoolExecutor(1) as hasher:
        hashed = hasher.submit(digest.update, b"")
        for part in _parts(ordered):
            hashed.result()  # one part is hashed while it is written and the next is read
            hashed = hasher.submit(digest.update, part)
            size += stream.write(part)
            on_bytes(len(part))
    return Written(read_headers([file]), FileRecord(size=size, sha256=digest.hexdigest()))


def bind(model: ir.Model, tensors: Mapping[str, StoredTensor]) -> None:
    """Point every weight of `model` at its bytes, in a file beside the graph."""
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
    """The file in order: its header, then the converted bytes of each tensor in chunks."""
    yield _header(ordered)
    for item in ordered:
        for chunk in item.chunks():
            yield chunk.view(torch.uint8).numpy().data


def _header(ordered: Sequence[Conversion]) -> bytes:
    """The length and the JSON, padded with spaces so that the data start aligned."""
    entries, position = {}, 0
    for item in ordered:
        entries[item.source.name] = {
            "dtype": SAFETENSORS_DTYPES[item.dtype],
            "shape": list(item.source.shape),
            "data_offsets": [position, position + item.nbytes],
        }
        position += item.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _alignment(nbytes: int) -> int:
    """The largest power of two, at most `ALIGNMENT`, that divides `nbytes`."""
    return min(nbytes & -nbytes, ALIGNMENT) if nbytes else 1


def _is_finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or Inf: the extremes of a tensor are then finite, and not NaN."""
    if not values.is_floating_point() or not values.numel():
        return True
    low, high = torch.aminmax(values)  # one pass, and unlike `isfinite` nothing of its size
    return math.isfinite(low) and math.isfinite(high)


def _check_finite(source: StoredTensor, before: torch.Tensor, after: torch.Tensor) -> None:
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
