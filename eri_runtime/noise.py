"""Noise as data: keyed by (seed, draw), so an image does not depend on the batch it is in.

The default is torch's, so that a seed gives the picture diffusers gives for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from math import prod
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import UsageError
from eri_runtime.randn import MAX_SEED, TorchNormal

NoiseName = Literal["torch", "philox", "brownian"]


class NoiseSource(Protocol):
    """Unit normal noise for a batch, by draw.

    Draw 0 is the initial latents and draw 1 the loop's first; of an edit draw 0 is the VAE's
    posterior, draw 1 the initial latents, and the loop begins at `Edit.first_draw`.
    """

    def __call__(self, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """(B, *shape) float32 for a `shape` without the batch; the same for the same `draw`."""
        ...


class TorchNoise:
    """torch's noise: image b has the stream of `torch.Generator("cpu").manual_seed(seeds[b])`.

    The stream begins with draw `first`: 1 where the initial latents are brought, as in diffusers. A
    draw is what the generator gives after the draws before it, all of this shape. The streams are
    only a cursor: a draw out of order starts them anew.
    """

    def __init__(self, seeds: Sequence[int], first: int = 0) -> None:
        self.seeds, self.first = tuple(seeds), first
        self._start(0)

    def __call__(self, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if draw < self.first:
            raise UsageError("draw", got=draw, expected=f"{self.first} or more")
        size = prod(shape)
        if draw < self._next or size != self._size:
            self._start(size)
        while self._next <= draw:
            values = [stream.standard_normal(shape) for stream in self._streams]
            self._next += 1
        return np.stack(values)

    def _start(self, size: int) -> None:
        self._streams = [TorchNormal(seed) for seed in self.seeds]
        self._next, self._size = self.first, size


class PhiloxNoise:
    """One counter-based stream for each (seed, draw), so draw 1000 costs no more than draw 0.

    Philox 4×64 (Salmon et al. 2011, SC '11), keyed by NumPy's `SeedSequence`.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = tuple(seeds)

    def __call__(self, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return np.stack([_philox(seed, draw, shape) for seed in self.seeds])


def _philox(seed: int, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    stream = np.random.SeedSequence(entropy=seed, spawn_key=(draw,))
    return np.random.Generator(np.random.Philox(stream)).standard_normal(shape, dtype=np.float32)


def checked(source: NoiseSource, batch: int) -> NoiseSource:
    """`source` for a batch; a draw that is not (batch, *shape) floats raises `UsageError`."""

    def noise(draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        given = np.asarray(source(draw, shape))
        if given.shape != (batch, *shape) or given.dtype.kind != "f":
            expected = f"floats of {(batch, *shape)}"
            raise UsageError("noise", got=f"{given.dtype} of {given.shape}", expected=expected)
        return given.astype(np.float32, copy=False)

    return noise


def image_seeds(seed: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    """One seed an image: `seed`, `seed + 1`, … as AUTOMATIC1111 counts them, or the ones given.

    None draws a fresh one. Raises `UsageError` for a wrong number of seeds or one out of range.
    """
    if seed is None:
        seed = secrets.randbits(32)
    seeds = tuple(range(seed, seed + count)) if isinstance(seed, int) else tuple(seed)
    if len(seeds) != count:
        raise UsageError("seed", got=f"{len(seeds)} seeds", expected=f"one, or {count}")
    for value in seeds:
        if not isinstance(value, int) or not 0 <= value <= MAX_SEED:
            raise UsageError("seed", got=value, expected=f"an integer from 0 to {MAX_SEED}")
    return seeds
