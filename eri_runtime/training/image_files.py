"""Saves tensors as PNG files: `save_image` for [−1, 1], `save_tensor_as_image` for [0, 255]."""

from __future__ import annotations

import errno
import hashlib
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import check_finite, integer, to_numpy
from eri_runtime.checks import path as check_path
from eri_runtime.checks import text as check_text
from eri_runtime.errors import SizeError, UsageError, short
from eri_runtime.images import WRITABLE, parameters_text, save_png, write_png

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_OVERSHOOT = 16.0  # of a VAE's decoder; an array with larger values was never in [−1, 1]
SLUG_LENGTH = 60  # characters of a prompt in a file name
MOST_STEPS = 10**18  # of training, and images of one step
# errors of a path rather than of the disk
NOT_WRITABLE = frozenset({
    errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL,
})  # fmt: skip
CHANNELS = (1, 3)  # grey or RGB


def save_image(
    image_tensor: Any, output_dir: str | Path, model_name: str, step: int, idx: int, prompt: str
) -> Path:
    """Saves images in [−1, 1], such as a VAE decodes, as PNG files.

    Each file appears complete or not at all, and carries the prompt, model and training step in
    AUTOMATIC1111's `parameters`. Its name is `MODEL_stepNNNNNNNN_IDX_PROMPT.png` in ASCII.

    Args:
        image_tensor: Images (B, C, H, W) or (C, H, W), floats in [−1, 1], C = 3 (RGB) or 1 (grey);
            a NumPy array or a torch tensor on any device. Values outside are clipped, as a decoder
            overshoots.
        output_dir: Folder of the files; created if missing.
        model_name: Name of the model.
        step: Training step, 0 or more.
        idx: Index of the image, 0 or more. The further images of a batch get `IDX-1`, `IDX-2`, ….
        prompt: The prompt.

    Returns:
        The path of the first file.

    Raises:
        SizeError: If the shape is wrong.
        NonFiniteError: If the images contain NaN or Inf.
        UsageError: If the tensor holds integers or values that are clearly not in [−1, 1], the
            folder cannot be written, or another argument is invalid.

    Example:
            decoded = pipe.decode(latents, 1024, 1024)
            eri.save_image(decoded, "samples", "sdxl", step=1000, idx=0, prompt="a red heart")
            # samples/sdxl_step00001000_000_a-red-heart.png
    """
    signed = _check_signed("image_tensor", image_tensor)
    pixels = to_uint8((np.clip(signed, -1, 1) + 1) * np.float32(127.5))
    integer("step", step, 0, MOST_STEPS)
    integer("idx", idx, 0, MOST_STEPS)
    settings = {"Model": check_text("model_name", model_name), **training_step(step), "Index": idx}
    text = parameters_text(check_text("prompt", prompt), "", settings)
    names = [f"{idx:03d}" if row == 0 else f"{idx:03d}-{row}" for row in range(len(pixels))]
    folder = check_path("output_dir", output_dir)
    paths = [folder / file_name(model_name, step, name, prompt) for name in names]
    for image, path in zip(pixels, paths, strict=True):
        write_image(to_pil_image(image), path, text)
    return paths[0]


def save_tensor_as_image(tensor: Any, path: str | Path) -> None:
    """Saves one image in [0, 255] as a PNG file.

    The file appears complete or not at all.

    Args:
        tensor: Image (C, H, W) in [0, 255], C = 3 (RGB) or 1 (grey), integers or floats; a NumPy
            array or a torch tensor on any device. Floats are rounded.
        path: The file; its name must end in `.png`. Missing folders are created.

    Raises:
        SizeError: If the shape is wrong.
        NonFiniteError: If the image contains NaN or Inf.
        UsageError: If the values are not in [0, 255], or the file cannot be written.

    Example:
            eri.save_tensor_as_image(np.zeros((3, 64, 64), np.uint8), "black.png")
    """
    pixels = _check_0_to_255("tensor", tensor)
    target = check_path("path", path)
    if target.suffix.lower() != ".png":
        raise UsageError("path", got=short(str(path)), expected="a name that ends in .png")
    write_image(to_pil_image(to_uint8(pixels)), target)


def training_step(step: int) -> dict[str, object]:
    """Returns the `parameters` entry of a training step; `Steps` means denoising steps there."""
    return {"Training step": step}


def file_name(model: str, step: int, index: str, prompt: str) -> str:
    """Returns a name such as `sd35_step00001000_000_a-red-heart.png`, which sorts by step."""
    return f"{slug(model)}_step{step:08d}_{index}_{slug(prompt)}.png"


def slug(text: str) -> str:
    """Returns a text as lower-case ASCII words joined by hyphens, safe in every file system.

    Drops accents. If the text has other letters or is too long, adds eight hex digits of its
    sha256, so that different prompts get different names. An empty text gives `untitled`.

    Example:
        >>> from eri_runtime.training import slug
        >>> slug("A café, at night!")
        'a-cafe-at-night'
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    words = re.findall("[a-z0-9]+", plain.lower())
    kept = "-".join(words)
    lost = len(kept) > SLUG_LENGTH or any(c.isalnum() and not c.isascii() for c in plain)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    parts = [kept[:SLUG_LENGTH].rstrip("-"), digest if lost else ""]
    return "-".join(filter(None, parts)) or "untitled"


def write_image(image: Image, path: Path, parameters: str | None = None) -> None:
    """Writes a PNG file, with a `parameters` text if there is one.

    Raises `UsageError` if the path cannot be a file, and `OSError` for example if the disk is full.
    """
    try:
        if parameters is None:
            write_png(image, path)
        else:
            save_png(image, path, parameters)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise UsageError(path, got=error, expected=WRITABLE) from error


def to_uint8(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rounds [0, 255] to uint8, halves to even as `images.to_pil` does."""
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def to_pil_image(pixels: NDArray[np.uint8]) -> Image:
    """Converts (C, H, W) to a PIL image of mode L or RGB."""
    from PIL import Image

    planes = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return Image.fromarray(planes)


def _check_signed(name: str, image: Any) -> NDArray[np.float32]:
    """Returns images in about [−1, 1] as (B, C, H, W) float32; raises an error for others."""
    array = to_numpy(name, image)
    if array.ndim == 3:
        array = array[None]
    _check_shape(name, array, 4, "(B, C, H, W) or (C, H, W)")
    if array.dtype.kind != "f":
        fix = "for [0, 255] use save_tensor_as_image"
        raise UsageError(name, got=array.dtype, expected="floats in [-1, 1]", fix=fix)
    low, high = _extent(name, array)
    if max(-low, high) > LARGEST_OVERSHOOT:
        hint = "this looks like [0, 255]: use save_tensor_as_image" if low >= 0 else None
        raise UsageError(name, got=_range(low, high), expected="[-1, 1]", fix=hint)
    return array.astype(np.float32)


def _check_0_to_255(name: str, image: Any) -> NDArray[np.float32]:
    """Returns an image in [0, 255] as (C, H, W) float32; raises an error for others."""
    array = to_numpy(name, image)
    fix = "pass one image of the batch" if array.ndim == 4 else None
    _check_shape(name, array, 3, "(C, H, W)", fix)
    if array.dtype.kind not in "fiu":
        raise UsageError(name, got=array.dtype, expected="integers or floats in [0, 255]")
    low, high = _extent(name, array)
    if low < -0.5 or high > 255.5:
        fix = (
            "this looks like [-1, 1]: use save_image"
            if high <= LARGEST_OVERSHOOT
            else "clip it first"
        )
        raise UsageError(name, got=_range(low, high), expected="[0, 255]", fix=fix)
    if high <= 1 and (array != np.round(array)).any():
        fix = "this looks like [0, 1]: multiply by 255"
        raise UsageError(name, got=_range(low, high), expected="[0, 255]", fix=fix)
    return array.astype(np.float32)


def _check_shape(
    name: str, array: NDArray[Any], rank: int, expected: str, fix: str | None = None
) -> None:
    """Raises `SizeError` unless the array has this rank, 1 or 3 channels, and any pixels."""
    if array.ndim == rank and array.size and array.shape[-3] in CHANNELS:
        return
    if array.ndim == rank and array.shape[-1] in CHANNELS:
        fix = "channels are last: transpose them to the front"
    raise SizeError(name, got=array.shape, expected=f"{expected} with C 1 or 3", fix=fix)


def _extent(name: str, array: NDArray[Any]) -> tuple[float, float]:
    """Returns the smallest and largest value; raises `NonFiniteError` for NaN or Inf."""
    check_finite(name, array)
    return float(array.min()), float(array.max())


def _range(low: float, high: float) -> str:
    """Describes the range of an array for an error message."""
    return f"values from {low:g} to {high:g}"
