"""Parses the JSON header of a safetensors file, as strictly as the reference implementation.

https://github.com/huggingface/safetensors/blob/main/safetensors/src/tensor.rs
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from eri_runtime.errors import short

# Bits per element of every dtype in the format.
BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
METADATA = "__metadata__"
FIELDS = ("dtype", "shape", "data_offsets")
WORD = 1 << 64  # sizes are unsigned 64-bit numbers


@dataclass(frozen=True)
class Entry:
    """One tensor in the header.

    Attributes:
        dtype: The safetensors name of its type, such as `BF16`.
        shape: Its shape.
        begin: Offset of its first byte, counted from the end of the header.
        end: Offset after its last byte, counted from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_header(raw: bytes, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Parses a header; returns the entries by name and the metadata.

    `size` is the number of bytes after the header, which the entries must cover without gaps or
    overlaps. Raises `ValueError` or `RecursionError` for an invalid header. Duplicate names are
    invalid because readers disagree on which one counts; unknown fields, because their meaning is
    undefined.
    """
    header = json.loads(
        raw.decode(), object_pairs_hook=_object, parse_int=_number, parse_constant=_refuse
    )
    if not isinstance(header, dict):
        raise ValueError(f"got {type(header).__name__}, expected an object")
    metadata = _metadata(header.pop(METADATA, None))
    entries = {name: _entry(name, value) for name, value in header.items()}
    _check_ranges(entries, size)
    return entries, metadata


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object; raises `ValueError` for duplicate names and invalid Unicode."""
    values = dict(pairs)
    if len(values) < len(pairs):
        duplicate, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{short(duplicate)} is given twice")
    "".join(values).encode()  # raises for an unpaired surrogate
    return values


def _number(text: str) -> int | float:
    """Parses an integer literal.

    Signed or overlong literals become floats, which `_are_sizes` then rejects.
    """
    return int(text) if text.isdecimal() and len(text) <= len(str(WORD)) else float(text)


def _refuse(text: str) -> NoReturn:
    """Raises `ValueError` for NaN and Infinity, which Python's parser accepts."""
    raise ValueError(f"{text} is no JSON")


def _metadata(value: Any) -> dict[str, str]:
    """Checks the optional metadata, a map of strings; raises `ValueError` for anything else."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{METADATA}: got {short(value)}, expected texts by name")
    "".join(value.values()).encode()  # raises for an unpaired surrogate
    return value


def _entry(name: str, value: Any) -> Entry:
    """Checks one tensor's JSON; raises `ValueError` if dtype, shape and offsets do not agree."""
    if not isinstance(value, dict) or value.keys() != set(FIELDS):
        raise ValueError(f"{short(name)}: got {short(value)}, expected {', '.join(FIELDS)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{short(name)}: got type {short(dtype)}, expected {', '.join(BITS)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        got = f"shape {short(shape)} and data_offsets {short(offsets)}"
        raise ValueError(f"{short(name)}: got {got}, expected lists of sizes")
    begin, end = offsets
    if 8 * (end - begin) != _bits((*shape, BITS[dtype])):
        raise ValueError(f"{short(name)}: got {end - begin} bytes for {dtype} {short(shape)}")
    return Entry(dtype, tuple(shape), begin, end)


def _are_sizes(value: Any) -> bool:
    """Returns whether `value` is a list of unsigned 64-bit integers."""
    return isinstance(value, list) and all(type(size) is int and size < WORD for size in value)


def _bits(factors: Iterable[int]) -> int:
    """Returns the product of `factors`; raises `ValueError` if it overflows 64 bits on the way."""
    product = 1
    for factor in factors:
        product *= factor
        if product >= WORD:
            raise ValueError("the number of elements overflows")
    return product


def _check_ranges(entries: Mapping[str, Entry], size: int) -> None:
    """Raises `ValueError` unless the byte ranges cover the data without gaps or overlaps."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise ValueError(f"{short(name)} is at byte {entry.begin}, expected {position}")
        position = entry.end
    if position != size:
        raise ValueError(f"the tensors take {position} bytes, the file holds {size}")
