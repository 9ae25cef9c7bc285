"""What every engine offers that runs a step graph: a loop whose latents stay on its device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eri_runtime.executors.base import Arrays, Closeable

Array = NDArray[np.float32]


class Latents(Protocol):
    """The state after a row. It stays as it is for as long as it is kept."""

    @property
    def x(self) -> Array:
        """(B, …) float32, the state itself."""

    @property
    def denoised(self) -> Array:
        """(B, …) float32, x_0 as seen before the row."""

    @property
    def remembered(self) -> tuple[Array, ...]:
        """What the rows remember, (B, …) each, newest first; as many as the table is wide."""


class HeldLatents(Latents, Protocol):
    """Latents in an engine's memory; each array is copied out when it is first asked for."""

    @property
    def finite(self) -> bool:
        """Whether all of x is; costs no copy of it."""


class StepLoop(ABC):
    """One trajectory's buffers, all of them made before its first step."""

    @abstractmethod
    def bind(self, key: Hashable, mix: Array, conditions: Arrays) -> None:
        """Remember under `key` a (K, B) `mix`, and the inputs of its K·B rows and those shared."""

    @abstractmethod
    def begin(self, x: Array, remembered: Sequence[Array]) -> HeldLatents:
        """Put latents where the engine works; of the `remembered`, the oldest may be absent."""

    @abstractmethod
    def step(
        self, key: Hashable, row: Array, noises: Sequence[Array], state: HeldLatents
    ) -> HeldLatents:
        """Take one row (`table.COLUMNS`) from `state`, with the conditions bound as `key`.

        `noises` are its noises (B, …), newest first; none of a row whose noise has no weight.
        """


class Stepper(Closeable):
    """An open step graph, which owns the engine's resources; its loops end with it."""

    @abstractmethod
    def loop(self, shape: tuple[int, ...], width: int) -> StepLoop:
        """A loop over latents of this shape (B, …), of a table that remembers `width` rows."""
