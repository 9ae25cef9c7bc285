"""The change that a LoRA makes to one weight: an update, DoRA, or a replacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eri_runtime.weights.lora.deltas import Delta, LowRank, Matrix

Floats = NDArray[np.float32]
LowRankFactors = tuple[Matrix, Matrix]


class Adapter(Protocol):
    """A change that a LoRA makes to one weight."""

    def merged(self, base: Floats, scale: float) -> Floats:
        """Returns the changed weight in a new array, or `base` itself if `scale` is 0."""
        ...

    @property
    def low_rank(self) -> LowRankFactors | None:
        """The factors of a linear layer's low-rank update, or None for any other change.

        They are down (r, in) and up (out, r); up includes alpha / rank.
        """
        ...


@dataclass(frozen=True, eq=False)
class Sum:
    """An additive update: base + scale · delta.

    Attributes:
        delta: The update as a matrix.
        shape: The shape of the weight.
    """

    delta: Delta
    shape: tuple[int, ...]

    def merged(self, base: Floats, scale: float) -> Floats:
        """Returns base + scale · delta in a new array, or `base` itself if `scale` is 0."""
        if scale == 0:
            return base
        total = self.delta.times(scale).reshape(self.shape)
        total += base
        return total

    @property
    def low_rank(self) -> LowRankFactors | None:
        """Factors down (r, in) and up (out, r) if the weight is a matrix, else None."""
        if isinstance(self.delta, LowRank) and len(self.shape) == 2:
            return self.delta.down, self.delta.up
        return None


@dataclass(frozen=True, eq=False)
class Dora:
    """DoRA: the updated weight with the norm of each row set to a magnitude.

    W' = m · (W + scale · ΔW) / ‖W + scale · ΔW‖ (Liu et al. 2024, arXiv 2402.09353, eq. 5). As in
    peft, `scale` multiplies the update before the norm is computed; a scale of 0 changes nothing.

    Attributes:
        sum: The update.
        magnitude: The norms m, in the shape of the weight with a 1 along every axis that they are
            taken over. LyCORIS can have one per input instead of one per output.
    """

    sum: Sum
    magnitude: Floats

    def merged(self, base: Floats, scale: float) -> Floats:
        """Returns the normalised weight in a new array, or `base` itself if `scale` is 0."""
        if scale == 0:
            return base
        total = self.sum.merged(base, scale)
        axes = tuple(i for i, size in enumerate(self.magnitude.shape) if size == 1)
        norms = np.sqrt(np.square(total).sum(axis=axes, keepdims=True, dtype=np.float32))
        with np.errstate(divide="ignore", invalid="ignore"):  # `round_to` raises, with the name
            total *= self.magnitude / norms
        return total

    @property
    def low_rank(self) -> None:
        """None: DoRA depends on the weight."""
        return


@dataclass(frozen=True, eq=False)
class Replacement:
    """A value that replaces the weight: (1 − scale) · base + scale · value.

    Attributes:
        value: The new weight.
    """

    value: Floats

    def merged(self, base: Floats, scale: float) -> Floats:
        """Returns (1 − scale) · base + scale · value, or `base` itself if `scale` is 0."""
        if scale == 0:
            return base
        return np.float32(1 - scale) * base + np.float32(scale) * self.value

    @property
    def low_rank(self) -> None:
        """None: a replacement depends on the weight."""
        return
