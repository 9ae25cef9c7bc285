"""The JSON header of a safetensors file, as strict as the library that defines the format.

https://github.com/huggingface/safetensors/blob/main/safetensors/src/tensor.rs
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from eri_runtime.errors import short

# Bits of one element, of every type the format knows.
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
    """A tensor of the header: bytes `begin` to `end` after it hold its elements."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_header(raw: bytes, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """The entries by name, which together cover the `size` bytes after the header; the metadata.

    Raises `ValueError` or `RecursionError` for anything else: a name or field given twice, which
    readers disagree on; a field the format does not have, which could mean anything.
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
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{short(twice)} is given twice")
    "".join(found).encode()  # half a surrogate pair is no text
    return found


def _number(text: str) -> int | float:
    """A size may be an int; what is signed or has more digits than 64 bits is none."""
    return int(text) if text.isdecimal() and len(text) <= len(str(WORD)) else float(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _metadata(found: Any) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError(f"{METADATA}: got {short(found)}, expected texts by name")
    "".join(found.values()).encode()
    return found


def _entry(name: str, value: Any) -> Entry:
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
    return isinstance(value, list) and all(type(each) is int and each < WORD for each in value)


def _bits(factors: Iterable[int]) -> int:
    """Their product, which has to fit 64 bits at every factor."""
    product = 1
    for factor in factors:
        product *= factor
        if product >= WORD:
            raise ValueError("the number of elements overflows")
    return product


def _check_ranges(entries: Mapping[str, Entry], size: int) -> None:
    """The ranges follow one another and end where the file ends."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise ValueError(f"{short(name)} is at byte {entry.begin}, expected {position}")
        position = entry.end
    if position != size:
        raise ValueError(f"the tensors take {position} bytes, the file holds {size}")
