"""Reads pictures that users give. Pillow raises any kind of error for a damaged or hostile file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from eri_runtime.errors import UsageError, short
from eri_runtime.files import open_regular_file

if TYPE_CHECKING:
    from PIL.Image import Image

EXPECTED = "a picture that Pillow reads"
PROGRAMS = frozenset({"EPS"})  # Pillow starts Ghostscript to read it
SENT = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # what a client of a server may send

Value = TypeVar("Value")


def read_picture(name: str, path: str | Path) -> Image:
    """Reads a picture's first frame, rotated as its EXIF data says.

    Args:
        name: The argument that the message names.
        path: The file.

    Returns:
        The picture, in the mode of its file.

    Raises:
        UsageError: If the path is no regular file, or Pillow cannot read all of the picture. Also
            for a format that only another program reads, and for a picture of so many pixels that
            Pillow takes it for an attack.
    """
    from PIL import Image

    with _refused(name, path):
        Image.init()
        formats = tuple(each for each in Image.OPEN if each not in PROGRAMS)
        with open_regular_file(path) as (stream, _):
            return _read_upright(stream, formats)


def read_picture_bytes(name: str, content: bytes, most_pixels: int) -> Image:
    """Reads the first frame of a picture that a client sent, rotated as its EXIF data says.

    Args:
        name: The argument that the message names.
        content: The file's content: PNG, JPEG, WebP, GIF or BMP.
        most_pixels: Most pixels that the picture may have. They are counted before any is decoded.

    Returns:
        The picture, in the mode of its file.

    Raises:
        UsageError: If Pillow cannot read all of the picture, or it has too many pixels.
    """
    with _refused(name, "the picture"):
        return _read_upright(io.BytesIO(content), SENT, most_pixels)


def _read_upright(
    stream: IO[bytes], formats: tuple[str, ...], most_pixels: int | None = None
) -> Image:
    """Reads a stream's first frame; raises `ValueError` if it has more than `most_pixels`."""
    from PIL import Image, ImageOps

    with Image.open(stream, formats=formats) as image:
        if most_pixels is not None and image.width * image.height > most_pixels:
            size = f"{image.width}x{image.height}"
            raise ValueError(f"a picture of {size} pixels, more than {most_pixels} in all")
        image.load()
        upright: Image.Image = ImageOps.exif_transpose(image)
        return upright


def read_pixels(name: str, picture: Image, convert: Callable[[Image], Value]) -> Value:
    """Returns `convert(picture)`, which may be the first to read the picture's file.

    Raises `UsageError`, which names the argument `name`, if Pillow cannot read or convert it.
    """
    with _refused(name, picture):
        return convert(picture)


@contextmanager
def _refused(name: str, picture: object) -> Iterator[None]:
    """Turns every error of Pillow into a `UsageError`, and keeps its warnings away."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # Pillow's readers raise a dozen types
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        path = f"{picture}: " if isinstance(picture, str | Path) else ""
        raise UsageError(name, got=f"{path}{_line(reason)}", expected=EXPECTED) from error


def _line(text: str) -> str:
    """Returns a message of Pillow on one line."""
    return " ".join(text.split()) if len(text) < 500 else short(text)
