"""What every engine offers that runs a step graph: a loop whose latents stay on its device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from eri_runtime.executors.base import Arrays, Weighted

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


class Row(NamedTuple):
    """A row of `table.COLUMNS`, what is bound as `key` to run it with, and its noises (B, …).

    The noises are newest first, and none of a row whose noise has no weight.
    """

    key: Hashable
    columns: Array
    noises: Sequence[Array]


class StepLoop(ABC):
    """One trajectory's buffers, all of them made before its first step."""

    @abstractmethod
    def bind(self, key: Hashable, mix: Array, conditions: Arrays) -> None:
        """Remember under `key` a (K, B) `mix`, and the inputs of its K·B rows and those shared."""

    @abstractmethod
    def begin(self, x: Array, remembered: Sequence[Array]) -> HeldLatents:
        """Put latents where the engine works; of the `remembered`, the oldest may be absent."""

    @abstractmethod
    def run(self, rows: Iterable[Row], state: HeldLatents) -> Iterator[HeldLatents]:
        """The state after each row, taken one after the other from `state`, which is let go of."""


class Stepper(Weighted):
    """An open step graph, which owns the engine's resources; its loops end with it."""

    def obstacle(self, images: int, conditions: Iterable[int]) -> str | None:
        """Why it holds not this many images with one of these counts of conditions, or None."""
        del images, conditions
        return None

    @abstractmethod
    def loop(self, shape: tuple[int, ...], width: int) -> StepLoop:
        """A loop over latents of this shape (B, …), of a table that remembers `width` rows."""
