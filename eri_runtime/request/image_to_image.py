"""Image to image and inpainting: cuts the schedule, adds noise, keeps what is outside a mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import ScheduleKind
from eri_runtime.checks import real
from eri_runtime.errors import UsageError
from eri_runtime.images import Overlay, grey_of, size_of, to_signed, unit_of
from eri_runtime.request.kept_pixels import REPAINTED, Keep, check_painted, crop_to_mask
from eri_runtime.sampling import Point, SamplerTable, Schedule

Array = NDArray[np.float32]
STRENGTH = 0.6


@dataclass(frozen=True, kw_only=True)
class Edit:
    """The checked image, mask and strength of a call, and what it keeps of the image.

    Attributes:
        pixels: Images to start from, (B, 3, H, W) float32 in [−1, 1].
        mask: 1 where to repaint, 0 where to keep, (B, 1, h, w) float32; or None.
        strength: Share of the schedule that is run, more than 0, up to 1.
        overlay: Puts the original's pixels back outside the mask; or None.
        padding: The `padding_mask_crop` of the call, or None.
    """

    pixels: Array
    mask: Array | None
    strength: float
    overlay: Overlay | None = None
    padding: int | None = None

    @property
    def from_noise(self) -> bool:
        """Whether to start from noise alone, as diffusers' inpainting does at strength 1."""
        return self.mask is not None and self.strength == 1

    @property
    def first_draw(self) -> int:
        """The number of the loop's first draw of noise.

        Draw 0 is for the VAE's posterior and draw 1 for the initial latents; diffusers' inpainting
        uses one more for the image behind the mask.
        """
        return 2 if self.mask is None else 3


def list_images(image: Any) -> list[Any]:
    """Returns one image, a list of images, or an array with a batch axis, as a list."""
    if isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4):
        return list(image)
    return [image]


def image_size(image: Any, multiple: int) -> tuple[int, int]:
    """Returns height and width of the first image, rounded down to a multiple of `multiple`."""
    images = list_images(image)
    if not images:
        raise UsageError("image", got="none", expected="an image, or a list of them")
    width, height = size_of("image", images[0])
    return height // multiple * multiple, width // multiple * multiple


def make_edit(
    image: Any,
    mask: Any,
    strength: float | None,
    *,
    keep: Keep,
    size: tuple[int, int],
    factor: int,
    prompts: int,
    count: int,
) -> Edit | None:
    """Checks the arguments for image to image; returns None without an image.

    Args:
        image: One image, one per prompt, or one per generated image.
        mask: One mask, one per prompt, or one per generated image; or None.
        strength: Share of the schedule to run, or None for the default.
        keep: What to keep of the image outside the mask.
        size: Height and width of the generated images in pixels.
        factor: Pixels per latent along a side.
        prompts: Number of prompts.
        count: Number of generated images.

    Raises:
        UsageError: If there is a mask or strength but no image, the strength is outside (0, 1], the
            number of images is wrong, or something is no image.
    """
    if image is None:
        for name, value in (("mask", mask), ("strength", strength)):
            if value is not None:
                raise UsageError(name, got="no image", expected="an image to go with it")
        return None
    strength = STRENGTH if strength is None else strength
    share = real("strength", strength, "more than 0, up to 1", lambda share: 0 < share <= 1)
    overlay = None
    if keep.padding is not None:
        originals = list_images(image), list_images(mask)
        image, mask, overlay = crop_to_mask(*originals, keep.padding, size)
    images = _one_per_image("image", image, prompts, count)
    units, masks = np.stack([unit_of(each, *size) for each in images]), None
    if mask is not None:
        pairs = zip(_one_per_image("mask", mask, prompts, count), images, strict=True)
        greys = np.stack([grey_of(each, its_image, *size) for each, its_image in pairs])
        if keep.overlay and overlay is None:
            overlay = _whole_overlay(units, greys)
        white = (greys >= REPAINTED).astype(np.float32)
        masks = white[:, None, ::factor, ::factor]  # nearest neighbours, as diffusers
    return Edit(
        pixels=to_signed(units),
        mask=masks,
        strength=share,
        overlay=overlay,
        padding=keep.padding,
    )


def _whole_overlay(units: Array, greys: Array) -> Overlay:
    """Returns the overlay of whole images (B, H, W, 3) and masks (B, H, W)."""
    for grey in greys:
        check_painted(grey)
    return Overlay(originals=units, weights=greys[..., None])


def _one_per_image(name: str, value: Any, prompts: int, count: int) -> list[Any]:
    """Returns `count` images: the one image, or one per prompt, repeated as often as needed."""
    images = list_images(value)
    if len(images) not in (1, prompts, count):
        expected = f"1 or {count}" if prompts in (1, count) else f"1, {prompts} or {count}"
        raise UsageError(name, got=f"{len(images)} images", expected=expected)
    return [image for image in images for _ in range(count // len(images))]


def slice_schedule(schedule: Schedule, edit: Edit) -> Schedule:
    """Returns the last part of a schedule, with as many steps as in diffusers.

    Of N steps, `vp` keeps int(N·strength), a flow N − int(N − N·strength).

    Raises `UsageError` if no step is left.
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
    """Returns `share`, which is strength·count, as a whole number, rounded as diffusers does."""
    return int(share) if kind != "flow" else count - int(count - share)


def add_noise(original: Array, unit: Array, at: Point) -> Array:
    """Returns x = alpha·x_0 + sigma·n (Ho et al. 2020, arXiv 2006.11239, eq. 4), (B, …)."""
    return np.float32(at.alpha) * original + np.float32(at.sigma) * unit


def keep_outside_mask(
    mask: Array, original: Array, unit: Array, table: SamplerTable
) -> Callable[[Array, int], Array]:
    """Returns a function for `denoise(mend=…)` that keeps the image outside the mask.

    After every row it replaces the latents outside the mask by the original image with the noise
    `unit` at that row's level; after the last row, without noise. This is diffusers' inpainting
    with a network that was not trained for it (Lugmayr et al. 2022, arXiv 2201.09865, eq. 8).
    """

    def mend(x: Array, k: int) -> Array:
        last = k + 1 == len(table)
        known = original if last else add_noise(original, unit, table.points[k + 1])
        return (1 - mask) * known + mask * x

    return mend
