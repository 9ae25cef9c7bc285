"""What a LoRA does to one weight: add to it, normalise it as well (DoRA), or stand in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eri_runtime.lora.deltas import Delta, LowRank, Matrix

Floats = NDArray[np.float32]
Factors = tuple[Matrix, Matrix]


class Adapter(Protocol):
    """A change of one weight of a known shape."""

    def merged(self, base: Floats, scale: float) -> Floats:
        """The changed weight in new memory; `base` itself where `scale` is 0."""
        ...

    @property
    def low_rank(self) -> Factors | None:
        """Of a linear layer: down (r, in) and up (out, r), alpha in up; None for another change."""
        ...


@dataclass(frozen=True, eq=False)
class Sum:
    """base + scale · update."""

    delta: Delta
    shape: tuple[int, ...]

    def merged(self, base: Floats, scale: float) -> Floats:
        """The sum."""
        if scale == 0:
            return base
        total = self.delta.times(scale).reshape(self.shape)
        total += base
        return total

    @property
    def low_rank(self) -> Factors | None:
        """The factors, where the weight is a matrix and its update a product."""
        if isinstance(self.delta, LowRank) and len(self.shape) == 2:
            return self.delta.down, self.delta.up
        return None


@dataclass(frozen=True, eq=False)
class Dora:
    """The sum, with the length of each row set to `magnitude` (Liu et al. 2024, eq. 5).

    `magnitude` has the shape of the weight with a 1 along every axis that lengths are taken over;
    LyCORIS can take them per input instead of per output. As in peft, `scale` multiplies the
    update before lengths are taken; with a scale of 0 there is no change at all.
    """

    sum: Sum
    magnitude: Floats

    def merged(self, base: Floats, scale: float) -> Floats:
        """The normalised sum."""
        if scale == 0:
            return base
        total = self.sum.merged(base, scale)
        axes = tuple(i for i, size in enumerate(self.magnitude.shape) if size == 1)
        lengths = np.sqrt(np.square(total).sum(axis=axes, keepdims=True, dtype=np.float32))
        with np.errstate(divide="ignore", invalid="ignore"):  # named when the weight is rounded
            total *= self.magnitude / lengths
        return total

    @property
    def low_rank(self) -> None:
        """None: it depends on the weight."""
        return


@dataclass(frozen=True, eq=False)
class Replacement:
    """A value in place of the weight; between 0 and 1, `scale` is how far on the way to it."""

    value: Floats

    def merged(self, base: Floats, scale: float) -> Floats:
        """The mixture."""
        if scale == 0:
            return base
        return np.float32(1 - scale) * base + np.float32(scale) * self.value

    @property
    def low_rank(self) -> None:
        """None: it depends on the weight."""
        return
