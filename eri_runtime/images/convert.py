"""Conversion between arrays and PIL images: pixels, masks and contact sheets."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import SizeError, UsageError, short
from eri_runtime.images.read_picture import read_pixels

if TYPE_CHECKING:
    from PIL.Image import Image


def to_unit(decoded: NDArray[np.float32]) -> NDArray[np.float32]:
    """Converts decoded images (B, 3, H, W) in [−1, 1] to (B, H, W, 3) in [0, 1], clipped."""
    unit: NDArray[np.float32] = np.clip(decoded / 2 + 0.5, 0, 1)
    return unit.transpose(0, 2, 3, 1)


def to_signed(unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Converts images (B, H, W, 3) in [0, 1] to (B, 3, H, W) in [−1, 1]."""
    return np.ascontiguousarray(np.float32(2) * unit.transpose(0, 3, 1, 2) - np.float32(1))


def to_pil(unit: NDArray[np.float32]) -> list[Image]:
    """Converts images (B, H, W, 3) in [0, 1] to PIL images, rounded to 8 bits."""
    from PIL import Image

    return [Image.fromarray(pixels) for pixels in np.round(unit * 255).astype(np.uint8)]


def to_tensor(unit: NDArray[np.float32]) -> Any:
    """Converts images (B, H, W, 3) in [0, 1] to a torch tensor (B, 3, H, W).

    The caller has imported torch.
    """
    torch: Any = sys.modules["torch"]
    return torch.from_numpy(np.ascontiguousarray(unit.transpose(0, 3, 1, 2)))


def size_of(name: str, image: Any) -> tuple[int, int]:
    """Returns the width and height of a PIL image or an array (H, W, …).

    Raises `UsageError` for any other type; `name` is the argument that the message names.
    """
    if isinstance(image, np.ndarray) and image.ndim in (2, 3):
        return image.shape[1], image.shape[0]
    from PIL.Image import Image

    if not isinstance(image, Image):
        raise UsageError(name, got=short(image), expected="a PIL image or an array (H, W, …)")
    return image.size


def unit_of(image: Any, height: int, width: int) -> NDArray[np.float32]:
    """Returns the pixels of `image` as (height, width, 3) float32 in [0, 1].

    A PIL image is resized if necessary. An array must be (height, width, 3), uint8 or float in
    [0, 1]. Raises `SizeError` for an array of another shape and `UsageError` for another type or
    range.
    """
    size_of("image", image)
    if not isinstance(image, np.ndarray):
        image = _pil_array("image", image, "RGB", height, width)
    return _unit_array("image", image, (height, width, 3))


def grey_of(mask: Any, image: Any, height: int, width: int) -> NDArray[np.float32]:
    """Returns a mask as (height, width) float32: 0 is black and 1 is white.

    A PIL mask is resized if necessary. An array must be (height, width), bool, uint8 or float in
    [0, 1]. Raises `SizeError` unless `mask` has the size of `image`, and `UsageError` for another
    type or range.
    """
    check_same_size(mask, image)
    if not isinstance(mask, np.ndarray):
        mask = _pil_array("mask", mask, "L", height, width)
    return _unit_array("mask", _without_bool(mask), (height, width))


def check_same_size(mask: Any, image: Any) -> None:
    """Raises `SizeError` unless `mask` has the size of `image`."""
    if size_of("mask", mask) != size_of("image", image):
        got, expected = size_of("mask", mask), f"{size_of('image', image)}, the image's size"
        raise SizeError("mask", got=got, expected=expected)


def picture_of(name: str, image: Any, mode: Literal["RGB", "L"]) -> Image:
    """Returns a PIL image or an array of any size as a PIL image of `mode`, eight bits a channel.

    Raises the errors of `unit_of` (RGB) and `grey_of` (L); `name` is the argument that they name.
    """
    from PIL import Image

    width, height = size_of(name, image)
    if not isinstance(image, np.ndarray):
        return _pil_picture(name, image, mode)
    if mode == "L":
        unit = _unit_array(name, _without_bool(image), (height, width))
    else:
        unit = _unit_array(name, image, (height, width, 3))
    return Image.fromarray(np.round(unit * 255).astype(np.uint8))


def _pil_array(name: str, image: Image, mode: str, height: int, width: int) -> NDArray[np.uint8]:
    """Converts a PIL image to `mode` and resizes it if necessary, with Lanczos as diffusers does.

    Raises `UsageError` for a damaged file and for more than eight bits per channel.
    """
    from PIL.Image import Resampling

    converted = _pil_picture(name, image, mode)
    if converted.size != (width, height):
        converted = converted.resize((width, height), Resampling.LANCZOS)
    return np.asarray(converted)


def _pil_picture(name: str, image: Image, mode: str) -> Image:
    """Converts a PIL image to `mode`; raises the errors of `_pil_array`."""
    if image.mode[0] in "IF":
        got, fix = f"a picture of mode {image.mode}", f"scale it to 0 … 255 and convert to {mode}"
        raise UsageError(name, got=got, expected="eight bits a channel", fix=fix)
    return read_pixels(name, image, lambda picture: picture.convert(mode))


def _without_bool(mask: NDArray[Any]) -> NDArray[Any]:
    """Returns a mask of bools as float32, any other unchanged."""
    return mask.astype(np.float32) if mask.dtype == bool else mask


def _unit_array(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Converts a uint8 array, or floats in [0, 1], to float32 in [0, 1].

    Raises `SizeError` for another shape, and `UsageError` for another type or range.
    """
    if array.shape != shape:
        fix = "pass a PIL image to have it resized, or its height and width"
        raise SizeError(name, got=array.shape, expected=shape, fix=fix)
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind != "f":
        raise UsageError(name, got=array.dtype, expected="uint8, or floats from 0 to 1")
    if not ((array >= 0) & (array <= 1)).all():
        got = "values outside of it, or NaN"
        raise UsageError(name, got=got, expected="floats from 0 to 1")
    return array.astype(np.float32)


def contact_sheet(images: list[Image], columns: int, scale: int = 1) -> Image:
    """Arranges images of one size in a grid on white, each enlarged by an integer `scale`."""
    from PIL import Image

    width, height = (side * scale for side in images[0].size)
    gap = 4 * scale
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for i, image in enumerate(images):
        corner = (gap + i % columns * (width + gap), gap + i // columns * (height + gap))
        sheet.paste(image.resize((width, height), Image.Resampling.BICUBIC), corner)
    return sheet
