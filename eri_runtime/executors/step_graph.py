"""An open step graph: the denoising loop runs on the engine's device, one engine call per row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from eri_runtime.executors.base import Arrays, Refittable
from eri_runtime.executors.step_form import Layout

Array = NDArray[np.float32]
# the step graph's output -> the part of an engine's state that receives it
OUTPUTS = {
    "x_next": "x",
    "history_next": "history",
    "denoised": "denoised",
    "magnitude": "magnitude",
}


class Latents(Protocol):
    """The state after a row of the sampler table. It does not change while it is referenced."""

    @property
    def x(self) -> Array:
        """The latents after the row, (B, …) float32."""

    @property
    def denoised(self) -> Array:
        """The prediction of x_0 that the row used, (B, …) float32."""

    @property
    def remembered(self) -> tuple[Array, ...]:
        """Past predictions for multistep samplers, (B, …) float32 each, newest first.

        At most `width` of them, see `Stepper.loop`.
        """


class HeldLatents(Latents, Protocol):
    """Latents in the engine's memory. Each array is copied to the host on first access."""

    @property
    def finite(self) -> bool:
        """Whether all of x is finite. Costs no copy of x."""

    @property
    def finite_images(self) -> NDArray[np.bool_]:
        """Which images' x is finite, (B,). Copies x only if some is not."""


def which_finite(magnitude: Array, latents: Latents, images: int) -> NDArray[np.bool_]:
    """Returns which images are finite, (B,).

    Reads x only where a magnitude is not: a sum of finite numbers may be too large.

    Args:
        magnitude: The sum of |x|, () or for each image, (B,).
        latents: The state.
        images: Number of images B.
    """
    fine = np.broadcast_to(np.asarray(np.isfinite(magnitude)), (images,))
    if fine.all():
        return fine
    return np.array([np.isfinite(image).all() for image in latents.x])


class Row(NamedTuple):
    """One row of a sampler table, ready to run.

    Attributes:
        key: The key under which `StepLoop.bind` stored the row's `mix` and conditions.
        columns: The row's coefficients, in the order of `sampling.COLUMNS`, float32: (13,) for
            all images, or (B, 13), which may differ if `ComponentSpec.step_per_image`.
        noises: Noises (B, …), newest first; empty if the row uses no noise.
    """

    key: Hashable
    columns: Array
    noises: Sequence[Array]


class StepLoop(ABC):
    """The buffers of one trajectory, allocated before its first step."""

    @abstractmethod
    def bind(
        self, key: Hashable, mix: Array, conditions: Arrays, layout: Layout | None = None
    ) -> None:
        """Stores the conditions and their guidance weights under a key.

        Args:
            key: Name for `Row.key` to refer to.
            mix: Weight of each of K conditions for each of B images, (K, B) float32.
            conditions: The denoiser's other inputs by name, with a row for each row of the batch
                or shared by all.
            layout: Which rows of the batch are whose. Default: K·B rows, all images of the first
                condition, then of the second, ….

        Raises:
            UsageError: If the layout does not fit `mix`, or the graph takes none but the default.
        """

    @abstractmethod
    def begin(self, x: Array, remembered: Sequence[Array]) -> HeldLatents:
        """Copies a state to the engine's device.

        Args:
            x: Latents, (B, …) float32.
            remembered: Past predictions, newest first; the oldest may be missing.

        Returns:
            The state to pass to `run`.
        """

    @abstractmethod
    def run(self, rows: Iterable[Row], state: HeldLatents) -> Iterator[HeldLatents]:
        """Runs rows one after the other.

        Args:
            rows: Rows of the sampler table, in order.
            state: The state before the first row. Its buffers are reused once nothing else
                references it.

        Yields:
            The state after each row.
        """


class Stepper(Refittable):
    """An open step graph, which owns the engine's resources. Closing it ends its loops."""

    def refusal(self, images: int, conditions: Iterable[int]) -> str | None:
        """Returns why a batch does not fit the graph, or None.

        Args:
            images: Number of images.
            conditions: The numbers of conditions that the trajectory uses.
        """
        del images, conditions
        return None

    @abstractmethod
    def loop(self, shape: tuple[int, ...], width: int) -> StepLoop:
        """Creates a loop for one trajectory.

        Args:
            shape: Shape of the latents, (B, …).
            width: How many past predictions the sampler table uses.
        """
