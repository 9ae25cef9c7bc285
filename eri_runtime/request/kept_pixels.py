"""Inpainting that keeps pixels: checks `overlay` and `padding_mask_crop`, and crops for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import boolean, integer
from eri_runtime.errors import UsageError
from eri_runtime.images import Overlay, check_same_size, crop_box, fit, picture_of

Array = NDArray[np.float32]
REPAINTED = 0.5  # a mask is repainted where it is at least this light


@dataclass(frozen=True)
class Keep:
    """The checked `overlay` and `padding_mask_crop` of a call.

    Attributes:
        overlay: Whether to put the original's pixels back outside the mask.
        padding: Pixels around the mask of the part to repaint, or None for the whole picture.
    """

    overlay: bool = False
    padding: int | None = None


def check_keep(words: Mapping[str, Any], output_type: str) -> Keep:
    """Checks the two keywords, without looking at the pictures.

    Raises `UsageError` for a wrong type or a negative padding, without a mask, with latents as
    output, and for a crop that must not be put back.
    """
    overlay = boolean("overlay", words.get("overlay", False))
    padding = words.get("padding_mask_crop")
    if padding is not None:
        padding = integer("padding_mask_crop", padding, 0)
        if not words.get("overlay", True):
            raise UsageError("overlay", got="False with padding_mask_crop", expected="True")
    name = "overlay" if padding is None else "padding_mask_crop"
    keep = Keep(overlay or padding is not None, padding)
    if keep.overlay and words.get("mask") is None:
        raise UsageError(name, got="no mask", expected="a mask to go with it")
    if keep.overlay and output_type == "latent":
        fix = f"leave out {name}, or ask for pil or np"
        raise UsageError(name, got="it with output_type 'latent'", expected="images", fix=fix)
    return keep


def check_painted(grey: NDArray[Any]) -> None:
    """Raises `UsageError` for a mask (H, W) float32 that is nowhere light enough to repaint."""
    if not (grey >= REPAINTED).any():
        got, fix = "a mask without white", "white is repainted: invert it, or leave out overlay"
        raise UsageError("mask", got=got, expected="a pixel to repaint, or more", fix=fix)


def crop_to_mask(
    images: list[Any], masks: list[Any], padding: int, size: tuple[int, int]
) -> tuple[Any, Any, Overlay]:
    """Cuts out what is around the mask and fits it into the generated size (height, width).

    Args:
        images: The image, alone in its list; a PIL image or an array of any size.
        masks: The mask, alone in its list, of the image's size.
        padding: Pixels around the mask.
        size: Height and width of the generated images.

    Returns:
        Image and mask of the crop in that size, and the overlay that puts the images back.

    Raises:
        UsageError: For more than one image or mask, and for those that cannot be used.
    """
    for name, each in (("image", images), ("mask", masks)):
        if len(each) != 1:
            fix = "make a call for each, or leave out padding_mask_crop"
            got, expected = f"{len(each)} of them", "one with padding_mask_crop"
            raise UsageError(name, got=got, expected=expected, fix=fix)
    check_same_size(masks[0], images[0])
    image, mask = picture_of("image", images[0], "RGB"), picture_of("mask", masks[0], "L")
    original, grey = (
        np.asarray(each, dtype=np.float32) / np.float32(255) for each in (image, mask)
    )
    check_painted(grey)
    height, width = size
    box = crop_box(grey, width, height, padding)
    overlay = Overlay(originals=original[None], weights=grey[None, ..., None], box=box)
    return fit(image.crop(box), width, height), fit(mask.crop(box), width, height), overlay
