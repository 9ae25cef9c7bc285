"""Tensors of GGUF files: the header is read and checked here, `gguf` dequantises the blocks.

Layout: magic, version, number of tensors and of settings; the settings; name, sizes, type and
offset of each tensor; after padding, the tensors. Sizes are the fastest first, so reversed.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import importlib
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eri_export.checkpoints.quantised.decoded_tensor import Decode, Decoder, damaged, decoded
from eri_export.checkpoints.stored_tensors import TORCH_DTYPES, Span, StoredTensor
from eri_runtime.bundle import damaged_error, open_regular_file
from eri_runtime.errors import CheckpointError, DamagedWeightsError, short

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# ggml's types that need no decoding -> their names in safetensors
PLAIN: Mapping[int, str] = {
    0: "F32",
    1: "F16",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    30: "BF16",
}
# a setting's type -> its format in `struct`
SCALARS: Mapping[int, str] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
TEXT, ARRAY = 8, 9
ALIGNMENT = "general.alignment"
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."

# far more than any file has, and little work
MOST_TENSORS, MOST_SETTINGS, MOST_TEXTS = 100_000, 100_000, 1_000_000
MOST_NAME, MOST_SIZES = 65_535, 4
MOST_NAMES = 1 << 24  # bytes of all names together, which are kept in memory
LARGEST = 1 << 62

Dequantise = Callable[[bytearray, int], Any]


@dataclass(frozen=True, kw_only=True)
class GgufRows(Decoder):
    """Rows of blocks in one of ggml's types."""

    kind: int

    def load(self) -> Decode:
        """Returns the package's own dequantiser; it is NumPy and works row by row."""
        dequantise = _type(self.packed.file, self.kind).dequantise

        def decode(block: bytearray, _row: int) -> torch.Tensor:
            with np.errstate(all="ignore"):  # NaN and Inf are refused when weights are written
                values = dequantise(block, self.row_bytes)
            return torch.from_numpy(np.ascontiguousarray(values, np.float32)).view(-1)

        return decode


@dataclass(frozen=True)
class BlockType:
    """One of ggml's types: its name, the values and bytes of a block, and its dequantiser."""

    name: str
    values: int
    nbytes: int
    dequantise: Dequantise


class Cursor:
    """Reads numbers and texts from a file; `DamagedWeightsError` at the file's end."""

    def __init__(self, file: Path, stream: BufferedReader, size: int) -> None:
        self.file, self.size, self._stream = file, size, stream
        self._named = 0  # bytes of the names so far

    @property
    def position(self) -> int:
        """The position of the next byte."""
        return self._stream.tell()

    def bytes(self, count: int) -> bytes:
        """Reads so many bytes."""
        if count > self.size - self.position:
            raise damaged_error(self.file, "end of file in its header", "a whole GGUF header")
        return self._stream.read(count)

    def skip(self, count: int) -> None:
        """Moves on by so many bytes."""
        if count > self.size - self.position:
            raise damaged_error(self.file, "end of file in its header", "a whole GGUF header")
        self._stream.seek(count, 1)

    def number(self, form: str) -> Any:
        """Reads one number in `struct`'s format."""
        return struct.unpack(f"<{form}", self.bytes(struct.calcsize(form)))[0]

    def count(self, most: int, what: str) -> int:
        """Reads an unsigned 64-bit number; `DamagedWeightsError` if it is above `most`."""
        value: int = self.number("Q")
        if value > most:
            raise damaged_error(self.file, f"{value} {what}", f"at most {most}")
        return value

    def text(self) -> str:
        """Reads a name; `DamagedWeightsError` if all names together are longer than any file's."""
        length = self.count(MOST_NAME, "bytes in a name")
        self._named += length
        if self._named > MOST_NAMES:
            got = f"more than {MOST_NAMES} bytes of names"
            raise damaged_error(self.file, got, f"at most {MOST_NAMES}")
        raw = self.bytes(length)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise damaged_error(self.file, f"the name {short(raw)}", "UTF-8") from error


def is_gguf(file: Path) -> bool:
    """Returns whether a file begins as GGUF; raises `DamagedWeightsError` if it cannot be read."""
    with open_regular_file(file) as (stream, _):
        return stream.read(len(MAGIC)) == MAGIC


def read_gguf(file: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a GGUF file by name; none of their bytes are read.

    Raises `DamagedWeightsError` for a file that is truncated or inconsistent or has a type that is
    unknown, and `CheckpointError` if the package `gguf` is needed and missing.
    """
    with open_regular_file(file) as (stream, size):
        cursor = Cursor(file, stream, size)
        cursor.skip(len(MAGIC))
        version = cursor.number("I")
        if version not in VERSIONS:
            expected = f"version {' or '.join(map(str, VERSIONS))}, little-endian"
            raise damaged_error(file, f"a GGUF file of version {version}", expected)
        tensors = cursor.count(MOST_TENSORS, "tensors")
        settings = _settings(cursor)
        infos = [_info(cursor) for _ in range(tensors)]
        start = _aligned(cursor, settings)
    found: dict[str, StoredTensor] = {}
    for name, sizes, kind, offset in infos:
        if name in found:
            raise damaged_error(file, f"{short(name)}, twice", "each name once")
        original = settings.get(ORIGINAL_SHAPE + name)
        found[name] = _tensor(file, size, name, sizes, kind, start + offset, original)
    return found


def _settings(cursor: Cursor) -> dict[str, Any]:
    """Reads the settings; texts and long arrays, such as vocabularies, are passed over."""
    settings: dict[str, Any] = {}
    for _ in range(cursor.count(MOST_SETTINGS, "settings")):
        name = cursor.text()
        if name in settings:
            raise damaged_error(cursor.file, f"the setting {short(name)}, twice", "each name once")
        settings[name] = _value(cursor, name, cursor.number("I"))
    return settings


def _value(cursor: Cursor, name: str, kind: int) -> Any:
    """Reads a setting's number or list of few numbers; None for anything else."""
    if kind in SCALARS:
        return cursor.number(SCALARS[kind])
    if kind == TEXT:
        return cursor.skip(cursor.count(LARGEST, "bytes of text"))
    inner = cursor.number("I") if kind == ARRAY else kind
    if kind == ARRAY and inner in SCALARS:
        count = cursor.count(LARGEST, "numbers")
        if count > MOST_SIZES:
            return cursor.skip(count * struct.calcsize(SCALARS[inner]))
        return [cursor.number(SCALARS[inner]) for _ in range(count)]
    if kind == ARRAY and inner == TEXT:
        for _ in range(cursor.count(MOST_TEXTS, "texts")):
            cursor.skip(cursor.count(LARGEST, "bytes of text"))
        return None
    got = f"the setting {short(name)} of type {inner}"
    raise damaged_error(cursor.file, got, "numbers, texts or lists of them")


def _info(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Reads a tensor's name, sizes, type and offset."""
    name, count = cursor.text(), cursor.number("I")
    if count > MOST_SIZES:
        got = f"{count} sizes of {short(name)}"
        raise damaged_error(cursor.file, got, f"at most {MOST_SIZES}")
    sizes = tuple(cursor.number("Q") for _ in range(count))
    return name, sizes, cursor.number("I"), cursor.number("Q")


def _aligned(cursor: Cursor, settings: Mapping[str, Any]) -> int:
    """Returns where the tensors begin."""
    alignment = settings.get(ALIGNMENT, 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise damaged_error(cursor.file, f"{ALIGNMENT} {short(alignment)}", "a power of two")
    return -(-cursor.position // alignment) * alignment


def _tensor(
    file: Path,
    size: int,
    name: str,
    sizes: tuple[int, ...],
    kind: int,
    start: int,
    original: Any,
) -> StoredTensor:
    """Returns one tensor; raises `DamagedWeightsError` unless the file holds all its bytes."""
    elements, shape = math.prod(sizes), tuple(reversed(sizes))
    label = f"{file}: {short(name)}"
    if elements > LARGEST:
        raise DamagedWeightsError(label, got=f"sizes {short(sizes)}", expected="fewer elements")
    block = None if kind in PLAIN else _type(file, kind, label)
    if block is not None and (not sizes or sizes[0] % block.values):
        expected = f"rows of a multiple of {block.values}, a block of {block.name}"
        raise DamagedWeightsError(label, got=f"shape {short(shape)}", expected=expected)
    if block is None:
        nbytes = elements * TORCH_DTYPES[PLAIN[kind]].itemsize
    else:
        nbytes = elements // block.values * block.nbytes
    if start + nbytes > size:
        got = f"bytes up to {start + nbytes} of {size} for {short(name)}"
        raise damaged_error(file, got, "all bytes of all tensors")
    dtype = PLAIN[kind] if block is None else block.name
    packed = StoredTensor(name, dtype, shape, (Span(file, start, nbytes),))
    shape = _original(packed, original)
    if block is None:
        return StoredTensor(name, dtype, shape, packed.spans)
    row_bytes = sizes[0] // block.values * block.nbytes
    decoder = GgufRows(packed=packed, values=sizes[0], row_bytes=row_bytes, kind=kind)
    return decoded(decoder, shape, block.name)


def _original(packed: StoredTensor, original: Any) -> tuple[int, ...]:
    """Returns a tensor's shape; a setting keeps that of one that was stored in another."""
    if original is None:
        return _restored(packed)
    elements = math.prod(packed.shape)
    if (
        not isinstance(original, list)
        or not all(type(each) is int and each > 0 for each in original)
        or math.prod(original) != elements
    ):
        expected = f"a shape of {elements} elements"
        raise damaged(packed, f"{ORIGINAL_SHAPE}: {short(original)}", expected)
    return tuple(original)


def _restored(packed: StoredTensor) -> tuple[int, ...]:
    """Returns the shape with the sizes of 1 that the model's own files have.

    ggml drops such sizes at the front (SD3's positions), and stable-diffusion.cpp stores matrices
    that it uses as convolutions with two more at the end.
    """
    shape = packed.shape
    if packed.name.endswith("pos_embed") and len(shape) == 2:
        return (1, *shape)
    if packed.name.endswith((".proj_in.weight", ".proj_out.weight")) and shape[2:] == (1, 1):
        return shape[:2]
    return shape


def _type(file: Path, kind: int, label: object = None) -> BlockType:
    """Returns one of ggml's types; raises `DamagedWeightsError` for one that is unknown."""
    try:
        return _block_type(kind)
    except ImportError as error:
        raise CheckpointError(
            file,
            got="GGUF, without the package that dequantises it",
            expected="the package `gguf`",
            fix="pip install gguf",
        ) from error
    except (ValueError, NotImplementedError) as error:
        raise DamagedWeightsError(
            label or file,
            got=f"ggml's type {kind}",
            expected="F32, F16, BF16, Q8_0 to Q2_K, or an IQ type",
            fix="export another file of this model",
        ) from error


@cache
def _block_type(kind: int) -> BlockType:
    """Looks a type up; raises `ValueError` or `NotImplementedError` for one without dequantiser."""
    constants = importlib.import_module("gguf.constants")
    quants = importlib.import_module("gguf.quants")
    of = constants.GGMLQuantizationType(kind)
    values, nbytes = constants.GGML_QUANT_SIZES[of]

    def dequantise(block: bytearray, row_bytes: int) -> Any:
        return quants.dequantize(np.frombuffer(block, np.uint8).reshape(-1, row_bytes), of)

    dequantise(bytearray(nbytes), nbytes)
    return BlockType(of.name, values, nbytes, dequantise)
