"""Training's pictures to PNG files: `save_image` of [−1, 1], `save_tensor_as_image` of [0, 255]."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import from_anywhere, whole
from eri_runtime.errors import SizeError, UsageError, short
from eri_runtime.executors.base import check_finite
from eri_runtime.images import parameters_text, save_png, write_png

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = 16.0  # of a decoder's overshoot; what is beyond it was never in [−1, 1]
SLUG = 60  # characters of a prompt that a file name keeps
MODES = {1: "L", 3: "RGB"}  # by the number of channels
PLACE = "a place where a PNG can be written"


def save_image(
    image_tensor: Any, output_dir: str | Path, model_name: str, step: int, idx: int, prompt: str
) -> Path:
    """Save (B, C, H, W) or (C, H, W) of floats in [−1, 1], C 3 for RGB or 1 for grey, as PNG.

    `image_tensor` is a NumPy array or a tensor with `detach().cpu().numpy()`, of any float type.
    The name is `MODEL_stepNNNNNNNN_IDX_PROMPT.png` in ASCII; `step` and `idx` are 0 or more. A
    batch of several is as many files, `IDX`, `IDX-1`, `IDX-2`, …, and the first one's path comes
    back. Values outside [−1, 1] are clipped, as a decoder overshoots. The PNG carries the prompt,
    model and step in AUTOMATIC1111's `parameters`; it appears whole or not at all.

    Raises `SizeError` for another shape, `NonFiniteError` for NaN or Inf, `UsageError` for
    integers, for values that are not of [−1, 1] or for a folder that is none.
    """
    signed = _signed("image_tensor", image_tensor)
    pixels = to_bytes((np.clip(signed, -1, 1) + 1) * np.float32(127.5))
    whole("step", step, 0)
    whole("idx", idx, 0)
    settings = {"Model": text_of("model_name", model_name), **training_step(step), "Index": idx}
    text = parameters_text(text_of("prompt", prompt), "", settings)
    names = [f"{idx:03d}" if row == 0 else f"{idx:03d}-{row}" for row in range(len(pixels))]
    folder = _path("output_dir", output_dir)
    paths = [folder / file_name(model_name, step, name, prompt) for name in names]
    for image, path in zip(pixels, paths, strict=True):
        write(to_picture(image), path, text)
    return paths[0]


def save_tensor_as_image(tensor: Any, path: str | Path) -> None:
    """Save (C, H, W) in [0, 255], C 3 for RGB or 1 for grey, as the PNG file `path`.

    `tensor` is a NumPy array or a tensor with `detach().cpu().numpy()`, of any integer or float
    type; floats are rounded. The file appears whole or not at all.

    Raises `SizeError` for another shape, `NonFiniteError` for NaN or Inf, `UsageError` for values
    that are not of [0, 255] or for a path that is none.
    """
    pixels = _bytes_range("tensor", tensor)
    target = _path("path", path)
    if target.suffix.lower() != ".png":
        raise UsageError("path", got=short(str(path)), expected="a name that ends in .png")
    write(to_picture(to_bytes(pixels)), target)


def training_step(step: int) -> dict[str, object]:
    """How `parameters` names the step of training; its `Steps` are those of sampling."""
    return {"Training step": step}


def file_name(model: str, step: int, index: str, prompt: str) -> str:
    """`sd35_step00001000_000_a-red-heart.png`: sorted by name is sorted by step."""
    return f"{slug(model)}_step{step:08d}_{index}_{slug(prompt)}.png"


def slug(text: str) -> str:
    """Lower-case ASCII words of a text with hyphens between, which every file system takes.

    Accents are dropped. Where other letters or the end had to be left out, eight digits of the
    text's sha256 follow, so that prompts in other scripts stay apart. Empty is `untitled`.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    words = re.findall("[a-z0-9]+", plain.lower())
    kept = "-".join(words)
    lost = len(kept) > SLUG or any(c.isalnum() and not c.isascii() for c in plain)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    parts = [kept[:SLUG].rstrip("-"), digest if lost else ""]
    return "-".join(filter(None, parts)) or "untitled"


def write(image: Image, path: Path, parameters: str | None = None) -> None:
    """Write a PNG; a path that cannot be one is a `UsageError`, a full disk an `OSError`."""
    try:
        if parameters is None:
            write_png(image, path)
        else:
            save_png(image, path, parameters)
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UsageError(path, got=error, expected=PLACE) from error


def to_bytes(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 255] rounded to 8 bits, halves to even as `images.to_pil` does."""
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def to_picture(pixels: NDArray[np.uint8]) -> Image:
    """(C, H, W) as a PIL image of mode L or RGB."""
    from PIL import Image

    planes = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return Image.fromarray(planes)


def _signed(name: str, given: Any) -> NDArray[np.float32]:
    """(B, C, H, W) float32 of about [−1, 1]."""
    array = from_anywhere(name, given)
    if array.ndim == 3:
        array = array[None]
    _check_shape(name, array, 4, "(B, C, H, W) or (C, H, W)")
    if array.dtype.kind != "f":
        fix = "for [0, 255] use save_tensor_as_image"
        raise UsageError(name, got=array.dtype, expected="floats in [-1, 1]", fix=fix)
    low, high = _extent(name, array)
    if max(-low, high) > MOST:
        advice = "this looks like [0, 255]: use save_tensor_as_image" if low >= 0 else None
        raise UsageError(name, got=_range(low, high), expected="[-1, 1]", fix=advice)
    return array.astype(np.float32)


def _bytes_range(name: str, given: Any) -> NDArray[np.float32]:
    """(C, H, W) float32 of [0, 255]."""
    array = from_anywhere(name, given)
    fix = "pass one image of the batch" if array.ndim == 4 else None
    _check_shape(name, array, 3, "(C, H, W)", fix)
    if array.dtype.kind not in "fiu":
        raise UsageError(name, got=array.dtype, expected="integers or floats in [0, 255]")
    low, high = _extent(name, array)
    if low < -0.5 or high > 255.5:
        advice = "this looks like [-1, 1]: use save_image" if high <= MOST else "clip it first"
        raise UsageError(name, got=_range(low, high), expected="[0, 255]", fix=advice)
    if high <= 1 and (array != np.round(array)).any():
        advice = "this looks like [0, 1]: multiply by 255"
        raise UsageError(name, got=_range(low, high), expected="[0, 255]", fix=advice)
    return array.astype(np.float32)


def _check_shape(
    name: str, array: NDArray, rank: int, expected: str, fix: str | None = None
) -> None:
    if array.ndim == rank and array.size and array.shape[-3] in MODES:
        return
    if array.ndim == rank and array.shape[-1] in MODES:
        fix = "channels are last: transpose them to the front"
    raise SizeError(name, got=array.shape, expected=f"{expected} with C 1 or 3", fix=fix)


def _extent(name: str, array: NDArray) -> tuple[float, float]:
    """The least and the largest value; raises `NonFiniteError` for NaN or Inf."""
    check_finite(name, array)
    return float(array.min()), float(array.max())


def _range(low: float, high: float) -> str:
    return f"values from {low:g} to {high:g}"


def text_of(name: str, value: object) -> str:
    """`value`, if it is a string; else a `UsageError`."""
    if not isinstance(value, str):
        raise UsageError(name, got=short(value), expected="a string")
    return value


def _path(name: str, value: object) -> Path:
    if not isinstance(value, str | PathLike) or "\0" in str(value):
        raise UsageError(name, got=short(value), expected="a path")
    return Path(value)
