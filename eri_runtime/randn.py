"""torch's CPU `randn` in NumPy: the same seed gives the same noise without torch.

float32 is torch's bit for bit as torch computes it on x86 with AVX2; its own kernels for other CPUs
differ from that by up to 2e-6. float64 differs in the last bit of 0.2 % of the values.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime import cephes
from eri_runtime.checks import whole

Normals = NDArray[np.float32] | NDArray[np.float64]

MAX_SEED = 2**64 - 1
BLOCK = 16  # torch transforms sixteen uniforms at once: 8 radii, then 8 angles


class TorchNormal:
    """The stream of `torch.Generator("cpu").manual_seed(seed)`, one draw after another.

    MT19937 (Matsumoto & Nishimura 1998, ACM TOMACS 8:3) seeded by the low 32 bits of `seed`, and
    Box & Muller's transform (1958, Ann. Math. Statist. 29:2) of uniforms u, v in [0, 1):

        n = sqrt(−2 ln(1 − u)) · (cos 2πv, sin 2πv)

    Raises `UsageError` for a seed outside 0 … 2⁶⁴ − 1.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(whole("seed", seed, 0, MAX_SEED) & 0xFFFFFFFF)
        self._spare: NDArray[np.float64] = np.empty(0)

    def standard_normal(
        self, size: tuple[int, ...], dtype: type[np.floating] = np.float32
    ) -> Normals:
        """Unit normals in float32 or float64, as `torch.randn(size, generator=…, dtype=…)`.

        Named as in NumPy's `Generator`, in place of which it may be passed.
        """
        count = prod(size)
        values = self._few(count).astype(dtype) if count < BLOCK else self._many(count, dtype)
        return values.reshape(size)

    def _many(self, size: int, dtype: type[np.floating]) -> Normals:
        """Whole blocks; where `size` is no multiple, fresh uniforms make the last block again."""
        uniforms = self._uniforms(size, dtype)
        whole = size - size % BLOCK
        values = np.empty(size, dtype)
        values[:whole] = _transform(uniforms[:whole])
        if size != whole:
            values[-BLOCK:] = _transform(self._uniforms(BLOCK, dtype))
        return values

    def _few(self, size: int) -> NDArray[np.float64]:
        """One normal at a time, in float64; the second of a pair waits for the next such draw."""
        pairs = (size - len(self._spare) + 1) // 2
        v, u = self._uniforms(2 * pairs, np.float64).reshape(pairs, 2).T
        radius, angle = np.sqrt(-2 * np.log1p(-u)), 2 * np.pi * v
        fresh = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()
        values = np.concatenate([self._spare, fresh])
        self._spare = values[size:]
        return values[:size]

    def _uniforms(self, size: int, dtype: type[np.floating]) -> Normals:
        """As many bits as the significand holds: 24 of one word, or 53 of two, high word first."""
        if dtype == np.float32:
            return (self._words(size) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)
        high, low = self._words(2 * size).astype(np.uint64).reshape(size, 2).T
        return ((high << 32 | low) & (2**53 - 1)).astype(np.float64) * 2**-53

    def _words(self, size: int) -> NDArray[np.uint32]:
        """The generator's raw output: over the full range no word is drawn twice or thrown away."""
        return self._bits.randint(0, 2**32, size=size, dtype=np.uint32)


def _transform(uniforms: NDArray[Any]) -> NDArray[Any]:
    """Box & Muller's transform of blocks of u (8) and v (8); the type is kept."""
    u, v = uniforms.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
    one = uniforms.dtype.type(1)
    angle = uniforms.dtype.type(2 * np.pi) * v
    if uniforms.dtype == np.float32:
        logarithm, (sin, cos) = cephes.log(one - u), cephes.sin_cos(angle)
    else:
        logarithm, sin, cos = np.log(one - u), np.sin(angle), np.cos(angle)
    radius = np.sqrt(-2 * one * logarithm)
    return np.stack([radius * cos, radius * sin], axis=1).ravel()
