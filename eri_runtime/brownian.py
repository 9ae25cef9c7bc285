"""Brownian noise for SDE samplers: one path a seed, whatever the number of steps.

With independent draws, more steps give another picture; with increments of one path, W(a, b) of
the same W, they give the same picture more exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import UsageError
from eri_runtime.noise import TorchNoise
from eri_runtime.table import SamplerTable

DEPTH = 18  # two times in one of 2^18 leaves are joined to its ends, not to each other
ROOT, LEAF = 0, 1  # what a stream of a seed is for, beside the nodes from 2 on

Path = NDArray[np.float64]


class BrownianNoise:
    """A `NoiseSource`: draw `first` + k is W(a, b)/sqrt(|b − a|) with a, b = intervals[k].

    Times are whatever the sampler's noise is Brownian in, within `span` (low, high), which must be
    the same for the same path. Draws before `first`, those before the loop, are `TorchNoise`'s.
    Image b follows seeds[b]. Raises `UsageError` for a time outside the span or an interval of no
    length.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        intervals: Sequence[tuple[float, float]],
        span: tuple[float, float],
        first: int = 1,
    ) -> None:
        low, high = span
        for a, b in intervals:
            if a == b or not (low <= a <= high and low <= b <= high):
                raise UsageError("interval", got=(a, b), expected=f"two times in {span}")
        self.seeds, self.intervals, self.span = tuple(seeds), tuple(intervals), span
        self.first = first

    def __call__(self, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if draw < self.first:
            return TorchNoise(self.seeds)(draw, shape)
        if draw >= self.first + len(self.intervals):
            most = self.first + len(self.intervals) - 1
            raise UsageError("draw", got=draw, expected=f"at most {most}")
        a, b = self.intervals[draw - self.first]
        steps = [increment(seed, shape, self.span, a, b) for seed in self.seeds]
        return (np.stack(steps) / sqrt(abs(b - a))).astype(np.float32)


def intervals_of(table: SamplerTable) -> list[tuple[float, float]]:
    """The levels each draw of a table covers: from where the last one ended to where its row does.

    Raises `UsageError` for noise that is no part of a path: before the first row, or upwards.
    """
    covered, begin = [], table.level(0)
    for k in range(len(table)):
        if not table.draws_noise(k):
            continue
        end = table.level(k + 1)
        covered.append((begin, end))
        begin = end
    if table.C0 or any(a <= b for a, b in covered):
        fix = "leave out s_churn, or use noise='torch'"
        raise UsageError("noise", got="brownian", expected="noise of an SDE", fix=fix)
    return covered


def increment(
    seed: int, shape: tuple[int, ...], span: tuple[float, float], a: float, b: float
) -> Path:
    """W(b) − W(a), float64: normal with variance |b − a|; additive, and −W(a, b) backwards."""
    return _walk(seed, shape, span, b) - _walk(seed, shape, span, a)


def _walk(seed: int, shape: tuple[int, ...], span: tuple[float, float], time: float) -> Path:
    """W(time), with W(low) = 0, by a virtual Brownian tree (Li et al. 2020, arXiv 2001.01328, §4).

    Nothing is stored: halving the span, W of each middle is the bridge (Lévy 1948) between both
    ends, its noise keyed by (seed, node). Within [l, r]:

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
    """Unit normals of one node; keyed apart from `PhiloxNoise` by the longer key."""
    stream = np.random.SeedSequence(entropy=seed, spawn_key=(0, *key))
    return np.random.Generator(np.random.Philox(stream)).standard_normal(shape)
