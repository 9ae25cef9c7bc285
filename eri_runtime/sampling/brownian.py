"""Brownian noise for SDE samplers: increments of one Brownian path per seed.

With independent draws, another number of steps gives another image. With increments W(b) − W(a) of
one path W, more steps approximate the same image more accurately.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import finite, integer, items
from eri_runtime.errors import UsageError, short
from eri_runtime.sampling.noise import TorchNoise, check_seeds
from eri_runtime.sampling.table import SamplerTable

# Levels of the tree. Two times within one of its 2^18 leaves are not correlated as on one path:
# each depends on the leaf's ends only.
DEPTH = 18
ROOT, LEAF = 0, 1  # stream keys of the root and of a leaf; inner nodes have keys from 2 on

Path = NDArray[np.float64]


class BrownianNoise:
    """Increments of Brownian paths, as a `NoiseSource`; image b has the path of `seeds[b]`.

    Draw `first` + k is (W(b) − W(a)) / sqrt(|b − a|) with a, b = intervals[k], which is unit
    normal. Earlier draws, such as the initial latents, equal those of `TorchNoise`. The path is a
    virtual Brownian tree (Li et al. 2020, arXiv 2001.01328): a function of the seed, never stored.

    Args:
        seeds: One seed per image.
        intervals: Start and end of each draw's interval, in the time in which the sampler's noise
            is Brownian.
        span: The lowest and highest time. The path depends on it.
        first: Number of the first draw that is an increment: 1 if only the initial latents come
            before it.

    Raises:
        UsageError: If an interval has length 0 or leaves the span, or on a draw after the last
            interval.

    Example:
        One large step draws the sum of two small steps:

        >>> large = eri.BrownianNoise([7], [(1.0, 0.0)], span=(0.0, 1.0))
        >>> small = eri.BrownianNoise([7], [(1.0, 0.5), (0.5, 0.0)], span=(0.0, 1.0))
        >>> shape = (4, 8, 8)
        >>> total = np.sqrt(0.5) * (small(1, shape) + small(2, shape))
        >>> np.allclose(large(1, shape), total, atol=1e-6)
        True
    """

    def __init__(
        self,
        seeds: Sequence[int],
        intervals: Sequence[tuple[float, float]],
        span: tuple[float, float],
        first: int = 1,
    ) -> None:
        self.span = low, high = _times("span", span)
        self.intervals = tuple(
            _times("interval", each)
            for each in items("intervals", intervals, "a list of two times")
        )
        for a, b in self.intervals:
            if a == b or not (low <= a <= high and low <= b <= high):
                raise UsageError("interval", got=(a, b), expected=f"two times in {self.span}")
        self.seeds, self.first = check_seeds(seeds), integer("first", first, 0)

    def __call__(self, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Returns draw number `draw`, (B, *shape) float32."""
        if draw < self.first:
            return TorchNoise(self.seeds)(draw, shape)
        if draw >= self.first + len(self.intervals):
            last = self.first + len(self.intervals) - 1
            raise UsageError("draw", got=draw, expected=f"at most {last}")
        a, b = self.intervals[draw - self.first]
        increments = [increment(seed, shape, self.span, a, b) for seed in self.seeds]
        return (np.stack(increments) / sqrt(abs(b - a))).astype(np.float32)


def _times(name: str, value: object) -> tuple[float, float]:
    """Returns two finite numbers; raises `UsageError` for anything else."""
    times = items(name, value, "two times")
    if len(times) != 2:
        raise UsageError(name, got=short(value), expected="two times")
    return finite(name, times[0]), finite(name, times[1])


def noise_intervals(table: SamplerTable) -> list[tuple[float, float]]:
    """Returns the interval of noise levels that each draw of a table covers, for `BrownianNoise`.

    An interval starts where the previous one ends, and ends at the level after the row that draws.
    Raises `UsageError` if the noise is not an SDE's: drawn before the first row (churn), or over a
    rising level.
    """
    intervals, start = [], table.level(0)
    for k in range(len(table)):
        if not table.draws_noise(k):
            continue
        end = table.level(k + 1)
        intervals.append((start, end))
        start = end
    if table.C0 or any(a <= b for a, b in intervals):
        fix = "leave out s_churn, or use noise='torch'"
        raise UsageError("noise", got="brownian", expected="noise of an SDE", fix=fix)
    return intervals


def increment(
    seed: int, shape: tuple[int, ...], span: tuple[float, float], a: float, b: float
) -> Path:
    """Returns W(b) − W(a) of a seed's path, `shape` float64: normal with variance |b − a|.

    Increments are additive; the increment from b to a is the negative of that from a to b.
    """
    return _path_at(seed, shape, span, b) - _path_at(seed, shape, span, a)


def _path_at(seed: int, shape: tuple[int, ...], span: tuple[float, float], time: float) -> Path:
    """Returns W(time), `shape` float64, with W(low) = 0, by a virtual Brownian tree.

    Li et al. 2020 (arXiv 2001.01328), §4. Bisects the span: W at each middle is a Brownian bridge
    (Lévy 1948) between both ends, with noise keyed by (seed, node). Within [l, r]:

        W(t) = ((r − t)·W(l) + (t − l)·W(r))/(r − l) + sqrt((t − l)(r − t)/(r − l))·n
    """
    low, high = span
    scale = sqrt(high - low)
    t = (time - low) / (high - low)
    left, right, node = 0.0, 1.0, 1
    at_left, at_right = np.zeros(shape), _normal(seed, (ROOT,), shape)
    for _ in range(DEPTH):
        if t in (left, right):
            break
        middle = (left + right) / 2
        at_middle = (at_left + at_right) / 2
        at_middle += sqrt(right - left) / 2 * _normal(seed, (1 + node,), shape)
        if t < middle:
            right, at_right, node = middle, at_middle, 2 * node
        else:
            left, at_left, node = middle, at_middle, 2 * node + 1
    share = (t - left) / (right - left)
    value = (1 - share) * at_left + share * at_right
    spread = sqrt(share * (1 - share) * (right - left))
    if spread:
        key = int(np.float64(t).view(np.uint64))
        value = value + spread * _normal(seed, (LEAF, key), shape)
    return scale * value


def _normal(seed: int, key: tuple[int, ...], shape: tuple[int, ...]) -> Path:
    """Returns one node's unit normals, `shape` float64.

    The two-part spawn key keeps the stream different from those of `PhiloxNoise`.
    """
    stream = np.random.SeedSequence(entropy=seed, spawn_key=(0, *key))
    return np.random.Generator(np.random.Philox(stream)).standard_normal(shape)
