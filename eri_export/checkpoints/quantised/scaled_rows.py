"""Weights in 8 bits with one scale a tensor or a row: scaled fp8, int8, LLM.int8()."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from eri_export.checkpoints.quantised.decoded_tensor import (
    Decode,
    DecodedTensor,
    Decoder,
    bytes_as,
    check_count,
    damaged,
    decoded,
    look_up,
    read_scales,
)
from eri_export.checkpoints.stored_tensors import TORCH_DTYPES, StoredTensor

# bitsandbytes' `int8_vectorwise_dequant` multiplies by this constant for 1/127
PER_127 = 7.874015718698502e-3
ROTATIONS = (4, 16, 64, 256, 1024)  # columns that ConvRot may rotate together


@dataclass(frozen=True, kw_only=True)
class ScaledRows(Decoder):
    """W = q · scale, with one scale for all rows or one a row.

    Attributes:
        scale: The scales.
        factor: What W is multiplied by after that, if anything.
        rotation: The size of the groups of columns that were rotated, or 0: W = (q · scale) Hᵀ.
    """

    scale: StoredTensor
    factor: float | None = None
    rotation: int = 0

    def load(self) -> Decode:
        """Reads the scales."""
        scales, dtype = read_scales(self.scale), TORCH_DTYPES[self.packed.dtype]
        turn = hadamard(self.rotation).T if self.rotation else None
        table = bytes_as(dtype) if dtype.itemsize == 1 else None
        alike = table is not None and scales.numel() == 1  # each byte has one value
        if table is not None and alike:
            table = self._scaled(table, scales)

        def decode(block: bytearray, row: int) -> torch.Tensor:
            if table is None:
                values = torch.frombuffer(block, dtype=dtype).to(torch.float32)
            else:
                values = look_up(table, block)
            values = values.view(-1, self.values)
            if not alike:
                own = scales if scales.numel() == 1 else scales[row : row + len(values), None]
                values = self._scaled(values, own)
            if turn is not None:
                values = values.view(len(values), -1, self.rotation) @ turn
            return values.reshape(-1)

        return decode

    def _scaled(self, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        values = values * scales
        return values if self.factor is None else values * self.factor


def scaled_rows(
    weight: StoredTensor,
    scale: StoredTensor,
    form: str,
    *,
    factor: float | None = None,
    rotation: int = 0,
) -> DecodedTensor:
    """Returns a weight as it reads with its scale, a scalar or one number a row.

    Raises `DamagedWeightsError` for scales of another shape, and for a rotation of groups that no
    Hadamard matrix has or that do not divide a row.
    """
    rows = weight.shape[0] if weight.shape else 1
    values = math.prod(weight.shape[1:])
    check_count(scale, 1, rows)
    if rotation and rotation not in ROTATIONS:
        expected = " or ".join(map(str, ROTATIONS))
        raise damaged(weight, f"a rotation in groups of {rotation}", expected)
    if rotation and values % rotation:
        raise damaged(weight, f"rows of {values}", f"a multiple of {rotation}, which are rotated")
    decoder = ScaledRows(
        packed=weight,
        values=values,
        row_bytes=values * TORCH_DTYPES[weight.dtype].itemsize,
        scale=scale,
        factor=factor,
        rotation=rotation,
    )
    return decoded(decoder, weight.shape, form)


def hadamard(size: int) -> torch.Tensor:
    """Returns the orthogonal matrix that ConvRot rotates groups of `size` columns by.

    It is the Kronecker power of a 4x4 Hadamard matrix with the same sum in each row, divided by the
    root of its size: `_build_hadamard` in comfy-kitchen's `tensor/int8_utils.py`.
    """
    four = torch.ones(4, 4)
    four[range(4), (3, 2, 1, 0)] = -1
    matrix = four
    while len(matrix) < size:
        matrix = torch.kron(matrix, four)
    normalised: torch.Tensor = matrix / size**0.5
    return normalised
