"""Reads AUTOMATIC1111's `parameters` text, which `eri_runtime.images.parameters_text` writes."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from eri_runtime.serve.http.pictures import EXIF_POINTER, USER_COMMENT

if TYPE_CHECKING:
    from PIL.Image import Image

NEGATIVE = "Negative prompt:"
# a name, and a value that is quoted or ends at a comma
SETTING = re.compile(r'(\w[\w \-/]{0,40}): ?("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
UNICODE = b"UNICODE\0"  # starts a comment in UTF-16
LONGEST = 10_000  # characters of that line; a longer one would take long
FEWEST = 3  # settings on the last line; fewer are the prompt's own words


def parameters_of(image: Image) -> str:
    """Returns the text that a picture carries: of a PNG, or in EXIF's UserComment; or ""."""
    text = image.info.get("parameters")
    if isinstance(text, str):
        return text
    with suppress(Exception):  # Pillow raises any kind of error for damaged EXIF data
        comment = image.getexif().get_ifd(EXIF_POINTER).get(USER_COMMENT, b"")
        if isinstance(comment, bytes) and comment.startswith(UNICODE):
            return comment.removeprefix(UNICODE).decode("utf-16-be")
    return ""


def parse_parameters(text: str) -> dict[str, str]:
    """Returns the settings of a picture by name, with its `Prompt` and `Negative prompt`.

    A text without a line of settings is all prompt.
    """
    lines = text.strip().split("\n")
    settings = dict(SETTING.findall(lines[-1])) if len(lines[-1]) <= LONGEST else {}
    if len(settings) >= FEWEST:
        lines.pop()
    else:
        settings = {}
    whole = "\n".join(lines)
    start = 0 if whole.startswith(NEGATIVE) else whole.find(f"\n{NEGATIVE}")
    prompt, negative = (whole, "") if start < 0 else (whole[:start], whole[start:])
    return {
        "Prompt": prompt.strip(),
        "Negative prompt": negative.strip().removeprefix(NEGATIVE).strip(),
        **{name.strip(): _unquoted(value.strip()) for name, value in settings.items()},
    }


def _unquoted(value: str) -> str:
    """Returns a value without the JSON quotes that it may have."""
    if value.startswith('"'):
        with suppress(ValueError):
            text = str(json.loads(value))
            text.encode()  # raises for lone surrogates, which no reply can carry
            return text
    return value
