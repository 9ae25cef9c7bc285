"""torch's CPU `randn` in NumPy: the same seed gives the same noise, without torch.

float32 values equal torch's on x86 with AVX2 bit for bit. torch's kernels for other CPUs differ
from these by up to 2e-6. In float64, 0.2 % of the values differ in the last bit.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import integer
from eri_runtime.sampling import torch_math

Normals = NDArray[np.float32] | NDArray[np.float64]

MAX_SEED = 2**64 - 1
BLOCK = 16  # torch transforms 16 uniforms at once: 8 for radii, then 8 for angles


class TorchNormal:
    """The normal stream of `torch.Generator("cpu").manual_seed(seed)`, without torch.

    MT19937 (Matsumoto & Nishimura 1998, ACM TOMACS 8:3) seeded by the low 32 bits of `seed`, and
    Box & Muller's transform (1958, Ann. Math. Statist. 29:2) of uniforms u, v in [0, 1):

        n = sqrt(−2 ln(1 − u)) · (cos 2πv, sin 2πv)

    Each draw advances the stream. `DDPMScheduler.step` takes it as `generator`.

    Args:
        seed: From 0 to 2⁶⁴ − 1.

    Raises:
        UsageError: If `seed` is out of range.

    Example:
        >>> eri.TorchNormal(0).standard_normal((3,))  # torch.manual_seed(0); torch.randn(3)
        array([ 1.5409961, -0.2934289, -2.1787894], dtype=float32)
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(integer("seed", seed, 0, MAX_SEED) & 0xFFFFFFFF)
        self._spare: NDArray[np.float64] = np.empty(0)

    def standard_normal(
        self, size: tuple[int, ...], dtype: type[np.floating] = np.float32
    ) -> Normals:
        """Draws unit normals, as `torch.randn(size, generator=…, dtype=…)`.

        The name is that of `np.random.Generator`, which this class can replace.

        Args:
            size: Shape of the array.
            dtype: `np.float32` or `np.float64`.

        Returns:
            An array of this shape and dtype.
        """
        count = prod(size)
        if count < BLOCK:
            return self._in_pairs(count).astype(dtype).reshape(size)
        return self._in_blocks(count, dtype).reshape(size)

    def _in_blocks(self, size: int, dtype: type[np.floating]) -> Normals:
        """Draws block by block, (size,) for size ≥ 16.

        As in torch, fresh uniforms replace the last 16 values if `size` is no multiple of 16.
        """
        uniforms = self._uniforms(size, dtype)
        full_blocks = size - size % BLOCK
        values = np.empty(size, dtype)
        values[:full_blocks] = _transform(uniforms[:full_blocks])
        if size != full_blocks:
            values[-BLOCK:] = _transform(self._uniforms(BLOCK, dtype))
        return values

    def _in_pairs(self, size: int) -> NDArray[np.float64]:
        """Draws pair by pair, (size,) for size < 16.

        As in torch, the second normal of an odd pair is kept for the next such draw.
        """
        pairs = (size - len(self._spare) + 1) // 2
        v, u = self._uniforms(2 * pairs, np.float64).reshape(pairs, 2).T
        radius, angle = np.sqrt(-2 * np.log1p(-u)), 2 * np.pi * v
        fresh = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()
        values = np.concatenate([self._spare, fresh])
        self._spare = values[size:]
        return values[:size]

    def _uniforms(self, size: int, dtype: type[np.floating]) -> Normals:
        """Draws uniforms in [0, 1), (size,), with as many bits as the significand holds.

        float32 uses 24 bits of one word, float64 53 bits of two words, the high word first.
        """
        if dtype == np.float32:
            return (self._words(size) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)
        high, low = self._words(2 * size).astype(np.uint64).reshape(size, 2).T
        return ((high << 32 | low) & (2**53 - 1)).astype(np.float64) * 2**-53

    def _words(self, size: int) -> NDArray[np.uint32]:
        """Returns MT19937's next 32-bit words, (size,): the full range needs no rejection."""
        return self._bits.randint(0, 2**32, size=size, dtype=np.uint32)


def _transform(uniforms: NDArray[Any]) -> NDArray[Any]:
    """Applies Box & Muller's transform to blocks of 8 u and 8 v; keeps the dtype."""
    u, v = uniforms.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
    one = uniforms.dtype.type(1)
    angle = uniforms.dtype.type(2 * np.pi) * v
    if uniforms.dtype == np.float32:
        logarithm, (sin, cos) = torch_math.log(one - u), torch_math.sin_cos(angle)
    else:
        logarithm, sin, cos = np.log(one - u), np.sin(angle), np.cos(angle)
    radius = np.sqrt(-2 * one * logarithm)
    return np.stack([radius * cos, radius * sin], axis=1).ravel()
