"""Noise as a function of (seed, draw), so that an image does not depend on its batch.

The default is torch's noise, so that a seed gives the same image as in diffusers.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import integer, items, to_numpy
from eri_runtime.errors import UsageError
from eri_runtime.sampling.torch_randn import MAX_SEED, TorchNormal

NoiseName = Literal["torch", "philox", "brownian"]


class NoiseSource(Protocol):
    """The protocol of a noise source: `noise(draw, shape)` returns unit normals for a batch.

    Any callable with this signature can be passed as `noise`. It takes the number of the draw and
    the shape of one image, and returns (B, *shape) float32, the same for the same `draw`.

    In text-to-image, draw 0 is the initial latents and draw 1 the first noise of the loop. In
    image-to-image, draw 0 samples the VAE's posterior and draw 1 is the initial noise (inpainting
    draws once more for the image behind the mask); the loop's draws follow.
    """

    def __call__(self, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Returns draw number `draw`, (B, *shape) float32."""
        ...


class TorchNoise:
    """torch's CPU noise, as a `NoiseSource`: the default, and what diffusers draws.

    Image b has the stream of `torch.Generator("cpu").manual_seed(seeds[b])`. A draw is what the
    generator returns after the earlier draws, all of the same shape. Draws may come in any order,
    but going back restarts the streams.

    Args:
        seeds: One seed per image, from 0 to 2⁶⁴ − 1.
        first: Number of the first draw: 1 if the caller passes the initial latents, since
            diffusers then draws none.

    Raises:
        UsageError: If a seed is out of range, or on a draw before `first`.

    Example:
        >>> noise = eri.TorchNoise(seeds=[0, 1])
        >>> noise(0, (4, 8, 8)).shape
        (2, 4, 8, 8)
        >>> noise(0, (2,))[0]  # torch.randn(2, generator=torch.Generator().manual_seed(0))
        array([ 1.5409961, -0.2934289], dtype=float32)
    """

    def __init__(self, seeds: Sequence[int], first: int = 0) -> None:
        self.seeds, self.first = check_seeds(seeds), integer("first", first, 0)
        self._restart(0)

    def __call__(self, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Returns draw number `draw`, (B, *shape) float32."""
        if draw < self.first:
            raise UsageError("draw", got=draw, expected=f"{self.first} or more")
        size = prod(shape)
        if draw < self._next or size != self._size:
            self._restart(size)
        while self._next <= draw:
            values = [stream.standard_normal(shape) for stream in self._streams]
            self._next += 1
        return np.stack(values)

    def _restart(self, size: int) -> None:
        """Rewinds every stream to draw `first`, for draws of `size` numbers."""
        self._streams = [TorchNormal(seed) for seed in self.seeds]
        self._next, self._size = self.first, size


class PhiloxNoise:
    """NumPy's counter-based noise, as a `NoiseSource`: one stream per (seed, draw).

    Philox 4×64 (Salmon et al. 2011, SC '11), keyed by NumPy's `SeedSequence`. Draw 1000 costs no
    more than draw 0.

    Args:
        seeds: One seed per image, 0 or more.

    Example:
        >>> noise = eri.PhiloxNoise(seeds=[0, 1])
        >>> alone = eri.PhiloxNoise(seeds=[1])
        >>> np.array_equal(noise(3, (4, 8, 8))[1], alone(3, (4, 8, 8))[0])
        True
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = check_seeds(seeds)

    def __call__(self, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Returns draw number `draw`, (B, *shape) float32."""
        return np.stack([_philox(seed, draw, shape) for seed in self.seeds])


def _philox(seed: int, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Returns one image's unit normals, `shape` float32."""
    stream = np.random.SeedSequence(entropy=seed, spawn_key=(draw,))
    return np.random.Generator(np.random.Philox(stream)).standard_normal(shape, dtype=np.float32)


def check_seeds(seeds: object) -> tuple[int, ...]:
    """Returns one seed per image, each 0 to 2⁶⁴ − 1; raises `UsageError` for anything else."""
    listed = items("seeds", seeds, "a list of one seed per image")
    return tuple(integer("seeds", seed, 0, MAX_SEED) for seed in listed)


def check_noise(source: NoiseSource, batch: int) -> NoiseSource:
    """Wraps a noise source: each draw is checked and converted to (batch, *shape) float32.

    A draw raises `UsageError` if the source returns another shape or no floats.
    """

    def noise(draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        values = to_numpy("noise", source(draw, shape))
        if values.shape != (batch, *shape) or values.dtype.kind != "f":
            expected = f"floats of {(batch, *shape)}"
            raise UsageError("noise", got=f"{values.dtype} of {values.shape}", expected=expected)
        return values.astype(np.float32, copy=False)

    return noise


def _is_scalar(value: object) -> bool:
    """Returns whether a value is an array without axes, which NumPy calls iterable."""
    return isinstance(value, np.ndarray) and value.ndim == 0


def image_seeds(seed: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Returns one seed per image: `seed`, `seed + 1`, … as in AUTOMATIC1111, or the given sequence.

    None stands for a random seed. Raises `UsageError` for a wrong number of seeds, or a seed out of
    range.
    """
    value: Any = secrets.randbits(32) if seed is None else seed
    if isinstance(value, Iterable) and not isinstance(value, str) and not _is_scalar(value):
        seeds = tuple(value)
    else:
        first = integer("seed", value, 0, MAX_SEED)
        seeds = tuple(range(first, first + count))
    if len(seeds) != count:
        raise UsageError("seed", got=f"{len(seeds)} seeds", expected=f"one, or {count}")
    return tuple(integer("seed", each, 0, MAX_SEED) for each in seeds)
