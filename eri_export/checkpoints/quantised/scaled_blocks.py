"""Weights in blocks along a row with a scale each: mxfp8 and nvfp4 as ComfyUI stores them.

Scales lie in the order in which cuBLAS reads them: tiles of 128 rows by 4 blocks.
https://docs.nvidia.com/cuda/cublas/index.html#d-block-scaling-factors-layout
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eri_export.checkpoints.quantised.decoded_tensor import (
    Decode,
    DecodedTensor,
    Decoder,
    bytes_as,
    check_count,
    check_type,
    damaged,
    decoded,
    look_up,
    pairs_of,
    read_bytes,
    read_scales,
)
from eri_export.checkpoints.stored_tensors import TORCH_DTYPES, StoredTensor

MXFP8_BLOCK, NVFP4_BLOCK = 32, 16
TILE_ROWS, TILE_COLUMNS = 128, 4
# E2M1: a sign, two bits of exponent, one of mantissa
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@dataclass(frozen=True, kw_only=True)
class Mxfp8(Decoder):
    """W = q · 2^(e - 127), e a byte for every 32 values; e = 0 means 0, as in comfy-kitchen."""

    exponents: StoredTensor

    def load(self) -> Decode:
        """Reads the exponents; 255 becomes Inf, which no weight may be."""
        table = bytes_as(TORCH_DTYPES[self.packed.dtype])
        stored = read_bytes(self.exponents).to(torch.int32) << 23  # the exponent bits of float32
        scales = untiled(stored.view(torch.float32), self.values // MXFP8_BLOCK)

        def decode(block: bytearray, row: int) -> torch.Tensor:
            return _scaled(look_up(table, block), scales, row, self.values, MXFP8_BLOCK)

        return decode


@dataclass(frozen=True, kw_only=True)
class Nvfp4(Decoder):
    """W = q · (global scale · block scale); q is in 4 bits, the first of two in the high bits."""

    scale: StoredTensor
    blocks: StoredTensor

    def load(self) -> Decode:
        """Reads both kinds of scales."""
        scales = untiled(read_scales(self.blocks), self.values // NVFP4_BLOCK)
        scales = read_scales(self.scale) * scales
        pairs = pairs_of(torch.tensor(FP4))

        def decode(block: bytearray, row: int) -> torch.Tensor:
            return _scaled(look_up(pairs, block), scales, row, self.values, NVFP4_BLOCK)

        return decode


def mxfp8(weight: StoredTensor, scale: StoredTensor) -> DecodedTensor:
    """Returns an mxfp8 matrix; raises `DamagedWeightsError` for types or shapes that do not fit."""
    check_type(weight, "F8_E4M3", "F8_E5M2")
    check_type(scale, "U8", "F8_E8M0")
    rows, columns = _matrix(weight, MXFP8_BLOCK)
    check_count(scale, _tiled(rows, columns // MXFP8_BLOCK))
    decoder = Mxfp8(packed=weight, values=columns, row_bytes=columns, exponents=scale)
    return decoded(decoder, weight.shape, "mxfp8")


def nvfp4(weight: StoredTensor, blocks: StoredTensor, scale: StoredTensor) -> DecodedTensor:
    """Returns an nvfp4 matrix; raises `DamagedWeightsError` for types or shapes that do not fit."""
    check_type(weight, "U8")
    check_type(blocks, "F8_E4M3")
    rows, packed = _matrix(weight, NVFP4_BLOCK // 2)
    check_count(blocks, _tiled(rows, 2 * packed // NVFP4_BLOCK))
    check_count(scale, 1)
    decoder = Nvfp4(packed=weight, values=2 * packed, row_bytes=packed, scale=scale, blocks=blocks)
    return decoded(decoder, (rows, 2 * packed), "nvfp4")


def untiled(stored: torch.Tensor, columns: int) -> torch.Tensor:
    """Returns scales as a matrix of `columns` columns, in which rows of padding remain.

    A tile holds its rows r = 32 a + b at [b, a], and four columns for each.
    """
    across = -(-columns // TILE_COLUMNS)
    tiles = stored.view(-1, across, TILE_ROWS // 4, 4, TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1, across * TILE_COLUMNS)[:, :columns]


def _scaled(
    values: torch.Tensor, scales: torch.Tensor, row: int, columns: int, size: int
) -> torch.Tensor:
    """Returns the values of some rows times their blocks' scales."""
    blocks = values.view(-1, columns // size, size)
    return (blocks * scales[row : row + len(blocks), :, None]).view(-1)


def _tiled(rows: int, columns: int) -> int:
    """Returns how many scales the tiles of a matrix of scales hold."""
    return -(-rows // TILE_ROWS) * TILE_ROWS * -(-columns // TILE_COLUMNS) * TILE_COLUMNS


def _matrix(weight: StoredTensor, size: int) -> tuple[int, int]:
    """Returns a matrix's shape; raises `DamagedWeightsError` unless blocks of `size` divide it."""
    if len(weight.shape) != 2 or not all(weight.shape) or weight.shape[1] % size:
        expected = f"a matrix with rows of a multiple of {size}"
        raise damaged(weight, f"shape {list(weight.shape)}", expected)
    return weight.shape[0], weight.shape[1]
