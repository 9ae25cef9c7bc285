"""Pictures to pixels and back, and PNG files that say how they were made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import SizeError, UsageError, short

if TYPE_CHECKING:
    from PIL.Image import Image


def to_unit(decoded: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, 3, H, W) in [−1, 1] to (B, H, W, 3) in [0, 1], clipped."""
    unit: NDArray[np.float32] = np.clip(decoded / 2 + 0.5, 0, 1)
    return unit.transpose(0, 2, 3, 1)


def to_pil(unit: NDArray[np.float32]) -> list[Image]:
    """(B, H, W, 3) in [0, 1] to PIL images, rounded to 8 bits."""
    from PIL import Image

    return [Image.fromarray(pixels) for pixels in np.round(unit * 255).astype(np.uint8)]


def size_of(name: str, image: Any) -> tuple[int, int]:
    """Width and height of a PIL image or an array (H, W, …); raises `UsageError` for another."""
    if isinstance(image, np.ndarray) and image.ndim in (2, 3):
        return image.shape[1], image.shape[0]
    from PIL.Image import Image

    if not isinstance(image, Image):
        raise UsageError(name, got=short(image), expected="a PIL image or an array (H, W, …)")
    return image.size


def pixels_of(image: Any, height: int, width: int) -> NDArray[np.float32]:
    """(3, height, width) in [−1, 1] of a PIL image, resized if need be, or an array (H, W, 3).

    Raises `UsageError` for an array of other size, type or range.
    """
    size_of("image", image)
    if isinstance(image, np.ndarray):
        unit = _unit_array("image", image, (height, width, 3))
    else:
        pixels = _pil_array("image", image, "RGB", height, width)
        unit = _unit_array("image", pixels, (height, width, 3))
    return np.float32(2) * unit.transpose(2, 0, 1) - np.float32(1)


def mask_of(mask: Any, image: Any, height: int, width: int) -> NDArray[np.float32]:
    """(height, width) of 0 and 1, as white as half or more, of a mask of the size of `image`.

    Raises `UsageError` for a mask of other size, type or range.
    """
    if size_of("mask", mask) != size_of("image", image):
        got, expected = size_of("mask", mask), f"{size_of('image', image)}, the image's size"
        raise SizeError("mask", got=got, expected=expected)
    if not isinstance(mask, np.ndarray):
        mask = _pil_array("mask", mask, "L", height, width)
    elif mask.dtype == bool:
        mask = mask.astype(np.float32)
    return (_unit_array("mask", mask, (height, width)) >= 0.5).astype(np.float32)


def _pil_array(name: str, image: Image, mode: str, height: int, width: int) -> NDArray[np.uint8]:
    """The picture in `mode`, resized as diffusers does it where its size is another.

    Raises `UsageError` for a file that breaks off, and for more than eight bits a channel.
    """
    from PIL.Image import Resampling

    if image.mode[0] in "IF":
        got, fix = f"a picture of mode {image.mode}", f"scale it to 0 … 255 and convert to {mode}"
        raise UsageError(name, got=got, expected="eight bits a channel", fix=fix)
    try:
        converted = image.convert(mode)
    except (OSError, ValueError) as error:
        raise UsageError(name, got=error, expected="a picture that Pillow reads") from error
    if converted.size != (width, height):
        converted = converted.resize((width, height), Resampling.LANCZOS)
    return np.asarray(converted)


def _unit_array(name: str, array: NDArray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array of bytes or of floats in [0, 1], as float32 in [0, 1]."""
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


def parameters_text(prompt: str, negative_prompt: str, settings: Mapping[str, object]) -> str:
    """AUTOMATIC1111's `parameters`: the prompt, the negative prompt if any, one line of settings.

    A value that holds a comma, colon or newline is JSON-quoted, as its readers expect.
    """
    negative = [f"Negative prompt: {negative_prompt}"] if negative_prompt else []
    line = ", ".join(f"{key}: {_quote(str(value))}" for key, value in settings.items())
    return "\n".join([prompt, *negative, line])


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if set(value) & set(",:\n") else value


def save_png(image: Image, path: str | Path, parameters: str) -> Path:
    """Write `image` with a `parameters` text; the file appears whole or not at all."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    add_text = info.add_text if parameters.isascii() else info.add_itxt
    add_text("parameters", parameters)
    return write_png(image, path, pnginfo=info)


def write_png(image: Image, path: str | Path, **options: Any) -> Path:
    """Write `image`; the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        image.save(partial, format="PNG", **options)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def contact_sheet(images: list[Image], columns: int, scale: int = 1) -> Image:
    """Images of one size in rows of `columns`, enlarged by a whole factor, on white."""
    from PIL import Image

    width, height = (side * scale for side in images[0].size)
    gap = 4 * scale
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for i, image in enumerate(images):
        corner = (gap + i % columns * (width + gap), gap + i // columns * (height + gap))
        sheet.paste(image.resize((width, height), Image.Resampling.BICUBIC), corner)
    return sheet
