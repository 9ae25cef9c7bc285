"""Crops a picture around a mask, fits the crop into another size, and fits it back.

The crop and both ways of fitting are those of diffusers' `VaeImageProcessor` (its resize modes
`fill` and `crop`), so that pictures painted with `padding_mask_crop` agree with diffusers'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, as Pillow has it


def crop_box(mask: NDArray[Any], width: int, height: int, padding: int) -> Box:
    """Returns the part of a picture to repaint, in the proportions of width to height.

    It has all of the mask and `padding` pixels on each side of it. Its shorter side then grows to
    the proportions of (width, height), as far as the picture reaches.

    Args:
        mask: (H, W), not 0 in a pixel or more; 0 where nothing is to be painted.
        width: Width of the generated picture.
        height: Height of the generated picture.
        padding: Pixels around the mask, 0 or more.
    """
    rows, columns = np.nonzero(mask)
    left, right = _span(columns, padding, mask.shape[1])
    top, bottom = _span(rows, padding, mask.shape[0])
    across, along, ratio = right - left, bottom - top, width / height
    if across / along > ratio:
        top, bottom = _grown(top, bottom, int(across / ratio - along), mask.shape[0])
    else:
        left, right = _grown(left, right, int(along * ratio - across), mask.shape[1])
    return left, top, right, bottom


def _span(indices: NDArray[np.intp], padding: int, limit: int) -> tuple[int, int]:
    """Returns the interval of the indices, longer by `padding` at both ends, in 0 … limit."""
    return max(int(indices.min()) - padding, 0), min(int(indices.max()) + 1 + padding, limit)


def _grown(low: int, high: int, more: int, limit: int) -> tuple[int, int]:
    """Returns an interval that is longer by `more`, at both ends if possible, in 0 … limit."""
    length = high - low + more
    start = max(0, min(low - more // 2, limit - length))
    return start, min(start + length, limit)


def fit(picture: Image, width: int, height: int) -> Image:
    """Resizes a picture, in its proportions, to fit into (width, height), and centres it there.

    What remains free at two sides gets the colours of the picture's border.
    """
    from PIL import Image

    wide = width / height < picture.width / picture.height
    across = width if wide else max(1, picture.width * height // picture.height)
    along = max(1, picture.height * width // picture.width) if wide else height
    inner = picture.resize((across, along), Image.Resampling.LANCZOS)
    canvas = Image.new(picture.mode, (width, height))
    left, top = width // 2 - across // 2, height // 2 - along // 2
    canvas.paste(inner, (left, top))
    if top > 0:
        for edge, place in ((0, 0), (along, top + along)):
            border = inner.resize((width, top), box=(0, edge, across, edge))
            canvas.paste(border, (0, place))
    elif left > 0:
        for edge, place in ((0, 0), (across, left + across)):
            border = inner.resize((left, height), box=(edge, 0, edge, along))
            canvas.paste(border, (place, 0))
    return canvas


def cover(picture: Image, width: int, height: int) -> Image:
    """Resizes a picture, in its proportions, to cover (width, height), and cuts what juts out."""
    from PIL import Image

    tall = width / height > picture.width / picture.height
    across = width if tall else picture.width * height // picture.height
    along = picture.height * width // picture.width if tall else height
    left, top = across // 2 - width // 2, along // 2 - height // 2
    resized = picture.resize((across, along), Image.Resampling.LANCZOS)
    return resized.crop((left, top, left + width, top + height))
