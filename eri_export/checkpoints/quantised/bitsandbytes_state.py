"""Weights that bitsandbytes quantised: NF4 and FP4 in 4 bits, LLM.int8() in 8.

A 4-bit `X.weight` is packed two values a byte, the first in the high bits. Beside it are a table of
16 values, `X.weight.quant_map`; the largest value of each block, `X.weight.absmax`; and in
`X.weight.quant_state.bitsandbytes__nf4`, JSON of the shape and the size of a block. W = table[q] ·
absmax. In a nested state absmax is in 8 bits itself: absmax = table2[a] · absmax2 + offset.
https://github.com/bitsandbytes-foundation/bitsandbytes, `functional.py`, class QuantState
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from eri_export.checkpoints.quantised.decoded_tensor import (
    Decode,
    Decoder,
    check_count,
    check_type,
    damaged,
    decoded,
    look_up,
    pairs_of,
    read_bytes,
    read_scales,
)
from eri_export.checkpoints.quantised.scaled_rows import PER_127, scaled_rows
from eri_export.checkpoints.stored_tensors import StoredTensor
from eri_runtime.errors import short
from eri_runtime.files import parse_json

STATE = "quant_state.bitsandbytes__"
FORMATS = ("nf4", "fp4")
PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
SCB, FORMAT_8 = "SCB", "weight_format"  # LLM.int8(): 127 scales, one a row; the order of the bytes
BLOCKS = frozenset(2**power for power in range(5, 13))  # the sizes of blocks that there are
LARGEST = torch.finfo(torch.float32).max
MOST_JSON = 4096  # bytes of a state; they have under 300


@dataclass(frozen=True, kw_only=True)
class FourBit(Decoder):
    """W = table[q] · absmax, one absmax a block of the flattened weight.

    Attributes:
        size: The number of values in the weight.
        block: The number of values in a block.
        table: The 16 values.
        absmax: The largest value of each block, or its index in `nested`.
        nested: The 256 values, the scales and the size of a block of absmax, and its offset.
    """

    size: int
    block: int
    table: StoredTensor
    absmax: StoredTensor
    nested: tuple[StoredTensor, StoredTensor, int, float] | None = None

    def load(self) -> Decode:
        """Reads the table and the scales."""
        pairs, absmax = pairs_of(read_scales(self.table)), self._absmax()

        def decode(block: bytearray, row: int) -> torch.Tensor:
            first = row * self.values
            values = look_up(pairs, block)[: self.size - first]
            if self.values % self.block == 0:
                blocks = values.view(-1, self.block)
                start = first // self.block
                return (blocks * absmax[start : start + len(blocks), None]).view(-1)
            return values * absmax[torch.arange(first, first + len(values)) // self.block]

        return decode

    def _absmax(self) -> torch.Tensor:
        if self.nested is None:
            return read_scales(self.absmax)
        table, scales, block, offset = self.nested
        indices = read_bytes(self.absmax).to(torch.int64)
        return read_scales(table)[indices] * read_scales(scales)[
            torch.arange(len(indices)) // block
        ] + torch.tensor(offset)


def dequantised(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Returns the tensors of files in which each weight stands without its state.

    Raises `DamagedWeightsError` for a state that is incomplete or does not fit its weight.
    """
    rest = dict(tensors)
    for name in tensors:
        stem, _, form = name.rpartition(STATE)
        if form in FORMATS and stem.endswith("."):
            state = rest.pop(name)
            parts = {part: rest.pop(stem + part, None) for part in PARTS}
            weight = _weight_of(state, rest, stem[:-1])
            rest[weight.name] = _four_bit(weight, form, _json(state), state, parts)
        elif name.endswith(f".{SCB}"):
            scale, layer = rest.pop(name), name.removesuffix(SCB)
            weight = _weight_of(scale, rest, f"{layer}weight")
            check_type(weight, "I8")
            _check_order(rest.pop(layer + FORMAT_8, None))
            rest[weight.name] = scaled_rows(weight, scale, "LLM.int8()", factor=PER_127)
    return rest


def _four_bit(
    weight: StoredTensor,
    form: str,
    state: Mapping[str, Any],
    told_by: StoredTensor,
    parts: Mapping[str, StoredTensor | None],
) -> StoredTensor:
    """Returns a weight in 4 bits; raises `DamagedWeightsError` for a state that does not fit."""
    shape, block = state.get("shape"), _block(told_by, state.get("blocksize"))
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise damaged(told_by, f"shape {short(shape)}", "a list of sizes")
    size = math.prod(shape)
    if weight.nbytes != (size + 1) // 2:
        raise damaged(weight, f"{weight.nbytes} bytes", f"two values a byte of {short(shape)}")
    table, absmax = (_present(weight, part, parts[part]) for part in ("quant_map", "absmax"))
    check_count(table, 16)
    check_count(absmax, -(-size // block))
    columns = math.prod(shape[1:]) if len(shape) > 1 else 1
    whole = columns % 2 > 0  # a row would end within a byte
    decoder = FourBit(
        packed=weight,
        values=size if whole else columns,
        row_bytes=weight.nbytes if whole else columns // 2,
        size=size,
        block=block,
        table=table,
        absmax=absmax,
        nested=_nested(weight, absmax, state, told_by, parts),
    )
    return decoded(decoder, tuple(shape), form)


def _nested(
    weight: StoredTensor,
    absmax: StoredTensor,
    state: Mapping[str, Any],
    told_by: StoredTensor,
    parts: Mapping[str, StoredTensor | None],
) -> tuple[StoredTensor, StoredTensor, int, float] | None:
    """Returns the state of an absmax in 8 bits, or None if it is not."""
    if absmax.dtype != "U8":
        return None
    table, scales = (
        _present(weight, part, parts[part]) for part in ("nested_quant_map", "nested_absmax")
    )
    block, offset = _block(told_by, state.get("nested_blocksize")), state.get("nested_offset")
    if not isinstance(offset, float) or not abs(offset) < LARGEST:
        raise damaged(told_by, f"nested_offset {short(offset)}", "a finite number")
    check_count(table, 256)
    check_count(scales, -(-math.prod(absmax.shape) // block))
    return table, scales, block, offset


def _block(state: StoredTensor, size: Any) -> int:
    """Returns the size of a block; raises `DamagedWeightsError` for one that there is not."""
    if not isinstance(size, int) or size not in BLOCKS:
        expected = f"one of {', '.join(map(str, sorted(BLOCKS)))}"
        raise damaged(state, f"blocks of {short(size)}", expected)
    return size


def _check_order(tensor: StoredTensor | None) -> None:
    """Raises `DamagedWeightsError` for bytes in the order of a GPU's tiles, not by row."""
    if tensor is None:
        return
    check_type(tensor, "U8")
    check_count(tensor, 1)
    order = int(read_bytes(tensor)[0])
    if order:
        raise damaged(tensor, f"the order {order}", "0, by rows")


def _weight_of(part: StoredTensor, tensors: Mapping[str, StoredTensor], name: str) -> StoredTensor:
    if name not in tensors:
        raise damaged(part, "no weight beside it", short(name))
    return tensors[name]


def _present(weight: StoredTensor, part: str, tensor: StoredTensor | None) -> StoredTensor:
    if tensor is None:
        raise damaged(weight, f"no {part} beside it", "all of bitsandbytes' state")
    return tensor


def _json(tensor: StoredTensor) -> Mapping[str, Any]:
    """Reads a state; raises `DamagedWeightsError` for anything but a JSON object."""
    if tensor.nbytes > MOST_JSON:
        raise damaged(tensor, f"{tensor.nbytes} bytes", f"JSON of at most {MOST_JSON}")
    try:
        value = parse_json(bytes(read_bytes(tensor).tolist()), infinite=True)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise damaged(tensor, "no JSON object", "bitsandbytes' state in JSON")
    return value
