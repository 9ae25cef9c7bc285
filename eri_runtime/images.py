"""Decoder output to pixels, and PNG files that say how they were made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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

    path = Path(path)
    info = PngInfo()
    add_text = info.add_text if parameters.isascii() else info.add_itxt
    add_text("parameters", parameters)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        image.save(partial, format="PNG", pnginfo=info)
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
