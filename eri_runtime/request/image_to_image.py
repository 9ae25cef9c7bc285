"""Image to image and inpainting: cuts the schedule, adds noise, keeps what is outside a mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import LatentSpec, ScheduleKind
from eri_runtime.checks import real
from eri_runtime.errors import UsageError
from eri_runtime.images import Overlay, grey_of, to_signed, unit_of
from eri_runtime.request.kept_pixels import REPAINTED, Keep, check_painted, crop_to_mask
from eri_runtime.request.start_images import is_latents, latents_of, list_images
from eri_runtime.sampling import Point, SamplerTable, Schedule

Array = NDArray[np.float32]
STRENGTH = 0.6


@dataclass(frozen=True, kw_only=True)
class Edit:
    """The checked image, mask and strength of a call, and what it keeps of the image.

    Attributes:
        pixels: Images to start from, (B, 3, H, W) float32 in [−1, 1]; or None.
        encoded: Latents to start from instead, (B, C, h, w) float32 in the denoiser's scale.
        mask: 1 where to repaint, 0 where to keep, (B, 1, h, w) float32; or None.
        strength: Share of the schedule that is run, more than 0, up to 1.
        overlay: Puts the original's pixels back outside the mask; or None.
        padding: The `padding_mask_crop` of the call, or None.
        noised: Whether noise is added to the start; not after `denoising_start`.
        brought: Whether the caller brought latents: the start itself, or with a mask its noise.
    """

    pixels: Array | None
    mask: Array | None
    strength: float
    overlay: Overlay | None = None
    padding: int | None = None
    encoded: Array | None = None
    noised: bool = True
    brought: bool = False

    @property
    def from_noise(self) -> bool:
        """Whether to start from noise alone, as diffusers' inpainting does at strength 1."""
        return self.mask is not None and self.strength == 1 and self.noised

    @property
    def encodes(self) -> bool:
        """Whether the VAE encodes the image: not latents, nor where only latents are read."""
        return self.pixels is not None and not (self.brought and self.mask is None)

    @property
    def undrawn(self) -> int:
        """The number of the first draw that is made: draw 0 is for the VAE's posterior."""
        return int(not self.encodes)

    @property
    def first_draw(self) -> int:
        """The number of the loop's first draw of noise.

        Draw 0 is for the VAE's posterior and draw 1 for the initial latents, unless the caller
        brought these or none is added; diffusers' inpainting uses one more for the image behind the
        mask.
        """
        draws_start = not self.brought and (self.noised or self.mask is not None)
        behind_mask = self.mask is not None and self.pixels is not None
        return 1 + draws_start + behind_mask


def first_noise(edit: Edit | None, *, has_latents: bool) -> int:
    """Returns the number of the first draw that a call makes, for the streams of its noise.

    With `latents` that is 1, as in diffusers; an edit has its own.
    """
    return int(has_latents) if edit is None else edit.undrawn


def make_edit(
    image: Any,
    mask: Any,
    strength: float | None,
    *,
    keep: Keep,
    size: tuple[int, int],
    latents: LatentSpec,
    prompts: int,
    count: int,
    noised: bool = True,
    brought: bool = False,
) -> Edit | None:
    """Checks the arguments for image to image; returns None without an image.

    Args:
        image: One image, one per prompt, or one per generated image; or latents.
        mask: One mask, one per prompt, or one per generated image; or None.
        strength: Share of the schedule to run, or None for the default.
        keep: What to keep of the image outside the mask.
        size: Height and width of the generated images in pixels.
        latents: The bundle's latents.
        prompts: Number of prompts.
        count: Number of generated images.
        noised: Whether noise is added to the start.
        brought: Whether the caller brought latents.

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
    if is_latents(image, latents):
        return _latents_edit(
            image, mask, share, keep, size, latents, prompts, count, noised, brought
        )
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
        masks = _latent_masks(white, latents.factor)
    return Edit(
        pixels=to_signed(units),
        mask=masks,
        strength=share,
        overlay=overlay,
        padding=keep.padding,
        noised=noised,
        brought=brought,
    )


def _latent_masks(white: Array, factor: int) -> Array:
    """Returns masks (B, H, W) in the latents' size, (B, 1, h, w), by nearest neighbours."""
    return white[:, None, ::factor, ::factor]


def _latents_edit(
    image: NDArray[Any],
    mask: Any,
    strength: float,
    keep: Keep,
    size: tuple[int, int],
    latents: LatentSpec,
    prompts: int,
    count: int,
    noised: bool,
    brought: bool,
) -> Edit:
    """Returns the edit of latents; raises `UsageError` if pixels are to be kept of them."""
    if keep.overlay:
        name = "overlay" if keep.padding is None else "padding_mask_crop"
        raise UsageError(name, got="latents as the image", expected="a picture")
    masks, picture = None, np.zeros((*size, 3), np.float32)
    if mask is not None:
        given = _one_per_image("mask", mask, prompts, count)
        greys = np.stack([grey_of(each, picture, *size) for each in given])
        masks = _latent_masks((greys >= REPAINTED).astype(np.float32), latents.factor)
    encoded = latents_of(image, latents, size, count)
    return Edit(
        pixels=None,
        encoded=encoded,
        mask=masks,
        strength=strength,
        noised=noised,
        brought=brought,
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
