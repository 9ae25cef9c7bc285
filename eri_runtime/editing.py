"""Image to image and inpainting: where a schedule begins on a picture, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import real
from eri_runtime.errors import UsageError
from eri_runtime.images import mask_of, pixels_of, size_of
from eri_runtime.schedule import Point, Schedule
from eri_runtime.spec import ScheduleKind
from eri_runtime.table import SamplerTable

Array = NDArray[np.float32]
STRENGTH = 0.6


@dataclass(frozen=True, kw_only=True)
class Edit:
    """`pixels` (B, 3, H, W) in [−1, 1] to begin from, and `mask` (B, 1, h, w), 1 where to repaint.

    `strength` is the share of the schedule that is run.
    """

    pixels: Array
    mask: Array | None
    strength: float

    @property
    def from_noise(self) -> bool:
        """Whether nothing of the picture is in the first latents, as in diffusers' inpainting."""
        return self.mask is not None and self.strength == 1

    @property
    def first_draw(self) -> int:
        """The loop's first draw of noise.

        Draw 0 is for the VAE's posterior and draw 1 for the first latents; diffusers' inpainting
        spends one more on the picture behind the mask.
        """
        return 2 if self.mask is None else 3


def images_in(image: Any) -> list[Any]:
    """One image, a list of them, or an array with a batch axis, as a list."""
    if isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4):
        return list(image)
    return [image]


def image_size(image: Any, multiple: int) -> tuple[int, int]:
    """Height and width of the first image, rounded down to a multiple."""
    images = images_in(image)
    if not images:
        raise UsageError("image", got="none", expected="an image, or a list of them")
    width, height = size_of("image", images[0])
    return height // multiple * multiple, width // multiple * multiple


def make_edit(
    image: Any,
    mask: Any,
    strength: float | None,
    *,
    size: tuple[int, int],
    factor: int,
    prompts: int,
    count: int,
) -> Edit | None:
    """A checked edit for `count` images, or None where no image is given.

    Raises `UsageError` for a mask or strength without an image, a strength outside (0, 1], another
    number of images than one, one a prompt or one an image, and for what is no image.
    """
    if image is None:
        for name, value in (("mask", mask), ("strength", strength)):
            if value is not None:
                raise UsageError(name, got="no image", expected="an image to go with it")
        return None
    given_strength = STRENGTH if strength is None else strength
    share = real("strength", given_strength, "more than 0, up to 1", lambda share: 0 < share <= 1)
    images = _one_each("image", image, prompts, count)
    pixels = [pixels_of(each, *size) for each in images]
    masks = None
    if mask is not None:
        given = zip(_one_each("mask", mask, prompts, count), images, strict=True)
        masks = np.stack([mask_of(each, beside, *size) for each, beside in given])
        masks = masks[:, None, ::factor, ::factor]  # nearest neighbours, as diffusers
    return Edit(pixels=np.stack(pixels), mask=masks, strength=share)


def _one_each(name: str, given: Any, prompts: int, count: int) -> list[Any]:
    images = images_in(given)
    if len(images) not in (1, prompts, count):
        expected = f"1 or {count}" if prompts in (1, count) else f"1, {prompts} or {count}"
        raise UsageError(name, got=f"{len(images)} images", expected=expected)
    return [image for image in images for _ in range(count // len(images))]


def begun(schedule: Schedule, edit: Edit) -> Schedule:
    """The last part of a schedule, as long as diffusers makes it for the same strength.

    `vp` takes int(N·strength) steps, a flow N − int(N − N·strength). Raises `UsageError` for none.
    """
    count = len(schedule)
    share = count * edit.strength
    steps = kept_steps(schedule.clock.kind, count, share)
    if steps < 1:
        got = f"{edit.strength:g} of {count} steps"
        fix = "raise strength or num_inference_steps"
        raise UsageError("strength", got=got, expected="a step or more", fix=fix)
    return schedule.part(count - steps, steps)


def kept_steps(kind: ScheduleKind, count: int, share: float) -> int:
    """`share` of `count` steps as a whole number, rounded as the family's pipelines round it."""
    return int(share) if kind == "vp" else count - int(count - share)


def noised(original: Array, unit: Array, at: Point) -> Array:
    """x = alpha·x_0 + sigma·n (Ho et al. 2020, arXiv 2006.11239, eq. 4)."""
    return np.float32(at.alpha) * original + np.float32(at.sigma) * unit


def keep_outside(
    mask: Array, original: Array, unit: Array, table: SamplerTable
) -> Callable[[Array, int], Array]:
    """Outside the mask, every state is the picture with the noise `unit`; the last one without.

    As diffusers' inpainting with a network that was not trained for it (Lugmayr et al. 2022, arXiv
    2201.09865, eq. 8). For `denoise(mend=…)`.
    """

    def mend(x: Array, k: int) -> Array:
        last = k + 1 == len(table)
        known = original if last else noised(original, unit, table.points[k + 1])
        return (1 - mask) * known + mask * x

    return mend
