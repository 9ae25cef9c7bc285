"""Pictures on the wire: reads base64, and encodes results with their parameters.

All of it takes long for an event loop: encoding goes to a thread by itself, reading must be sent.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from eri_runtime.errors import UsageError, short
from eri_runtime.images import png_bytes, read_picture_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

Format = Literal["png", "jpeg", "webp"]
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
USER_COMMENT, EXIF_POINTER = 0x9286, 0x8769
MOST_JPEG_TEXT = 60_000  # bytes: JPEG has room for 65,533 of EXIF data


def read_base64(name: str, text: str, most_pixels: int) -> Image:
    """Returns a picture that a client sent as base64, or as a `data:` URL.

    Args:
        name: The field, for messages.
        text: The picture's file.
        most_pixels: Most pixels it may have, `ServerOptions.upload_pixels`.

    Raises:
        UsageError: If it is no picture, damaged, or too large.
    """
    payload = text.partition(",")[2] if text[:5].lower() == "data:" else text
    try:
        content = base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(name, got=short(text), expected="a picture in base64") from error
    return read_picture_bytes(name, content, most_pixels)


def mask_of(picture: Image) -> Image:
    """Returns eri's mask, white where to repaint, of a mask that a client of OpenAI's API sent.

    Repaints where it is transparent. A picture without transparency is a mask of eri's own kind:
    white is repainted.
    """
    from PIL import ImageChops

    if not picture.has_transparency_data:
        return picture.convert("L")
    return ImageChops.invert(picture.convert("RGBA").getchannel("A"))


async def encode(
    image: Image, parameters: str = "", form: Format = "png", quality: int = 100
) -> bytes:
    """Returns a picture as a file's content.

    A PNG is the file that `Result.save` writes, with the `parameters` text. JPEG and WebP carry the
    text in EXIF's UserComment, where AUTOMATIC1111 puts it; one too long for JPEG is left out.

    Args:
        image: The picture.
        parameters: Its text; "" for none.
        form: The file format.
        quality: Of JPEG and WebP, 0 to 100.
    """
    return await asyncio.to_thread(_encode, image, parameters, form, quality)


def _encode(image: Image, parameters: str, form: Format, quality: int) -> bytes:
    """Encodes one picture."""
    if form == "png" and parameters:
        return png_bytes(image, parameters)
    stream = io.BytesIO()
    options = {} if form == "png" else {"quality": quality, "exif": _exif(parameters, form)}
    image.convert("RGB").save(stream, format=form, **options)
    return stream.getvalue()


def _exif(parameters: str, form: Format) -> bytes:
    """Returns EXIF data with the parameters as its UserComment."""
    from PIL import Image

    comment = b"UNICODE\0" + parameters.encode("utf-16-be", "replace")
    if not parameters or (form == "jpeg" and len(comment) > MOST_JPEG_TEXT):
        return b""
    exif = Image.Exif()
    exif.get_ifd(EXIF_POINTER)[USER_COMMENT] = comment
    return exif.tobytes()


async def encode_all(
    images: Sequence[Image],
    parameters: Sequence[str] = (),
    form: Format = "png",
    quality: int = 100,
) -> list[bytes]:
    """Returns several pictures as the contents of files; as `encode`."""
    texts = parameters or [""] * len(images)
    pairs = zip(images, texts, strict=True)
    return [await encode(image, text, form, quality) for image, text in pairs]


def to_base64(content: bytes) -> str:
    """Returns bytes as base64 text."""
    return base64.b64encode(content).decode("ascii")
