"""Noise as data: keyed by (seed, draw), so an image does not depend on the batch it is in."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import UsageError

MAX_SEED = 2**64 - 1


class NoiseSource(Protocol):
    """Unit normal noise for a batch; draw 0 is the initial latents."""

    def __call__(self, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """(B, *shape) float32 for a `shape` without the batch; the same for the same `draw`."""
        ...


class SeededNoise:
    """One Philox stream for each (seed, draw); image b of the batch uses seeds[b]."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = tuple(seeds)

    def __call__(self, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return np.stack([_normal(seed, draw, shape) for seed in self.seeds])


def _normal(seed: int, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    stream = np.random.SeedSequence(entropy=seed, spawn_key=(draw,))
    return np.random.Generator(np.random.Philox(stream)).standard_normal(shape, dtype=np.float32)


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
