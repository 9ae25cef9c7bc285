"""Pictures as clients of a server send and get them."""

from __future__ import annotations

import base64
import io

from PIL import Image


def png(size=(64, 64), colour=(255, 0, 0), mode="RGB", form="PNG") -> bytes:
    """A picture of one colour as a file."""
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, form)
    return stream.getvalue()


def hole(size=(64, 64), box=(16, 16, 32, 32)) -> bytes:
    """A mask of OpenAI's kind: transparent in a box."""
    picture = Image.new("RGBA", size, (0, 0, 0, 255))
    picture.paste((0, 0, 0, 0), box)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def opened(text: str) -> Image.Image:
    """The picture in base64 text, read to its end."""
    picture = Image.open(io.BytesIO(base64.b64decode(text)))
    picture.load()
    return picture
