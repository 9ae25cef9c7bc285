"""Reads the multipart form of an edit: its fields as JSON would have them, and its pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from eri_runtime.errors import UsageError, short
from eri_runtime.files import parse_json
from eri_runtime.images import read_picture_bytes
from eri_runtime.serve.http.openai_fields import EditFields

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_FILES, MOST_FIELDS = 20, 1000
IMAGES, MASK = ("image", "image[]"), "mask"
STRUCTURED = ("loras", "sigmas")  # fields that may come as JSON text


@dataclass(frozen=True)
class EditForm:
    """The form of an edit.

    Attributes:
        fields: Its fields.
        image: The picture to edit.
        mask: The mask as the client sent it, or None.
    """

    fields: EditFields
    image: Image
    mask: Image | None


async def read_edit(request: Request, most_pixels: int) -> EditForm:
    """Reads an edit's form.

    Args:
        request: The HTTP request.
        most_pixels: Most pixels of each picture.

    Raises:
        RequestValidationError: For an invalid field.
        UsageError: For a picture that is missing, damaged or too large, and for more than one.
    """
    async with request.form(max_files=MOST_FILES, max_fields=MOST_FIELDS) as form:
        items = form.multi_items()
        fields = _fields((name, value) for name, value in items if isinstance(value, str))
        files = [(name, value) for name, value in items if isinstance(value, UploadFile)]
        image, mask = _pictures(files)
        return EditForm(
            fields,
            await _read("image", image, most_pixels),
            None if mask is None else await _read(MASK, mask, most_pixels),
        )


async def _read(name: str, file: UploadFile, most_pixels: int) -> Image:
    """Returns the picture in an upload; raises `UsageError`."""
    return await asyncio.to_thread(read_picture_bytes, name, await file.read(), most_pixels)


def _pictures(files: list[tuple[str, UploadFile]]) -> tuple[UploadFile, UploadFile | None]:
    """Returns the picture and the mask; raises `UsageError` unless there is one picture."""
    for name, _ in files:
        if name not in (*IMAGES, MASK):
            raise UsageError(short(name), got="a file", expected="files named image and mask only")
    images = [file for name, file in files if name in IMAGES]
    masks = [file for name, file in files if name == MASK]
    if len(images) != 1:
        got, fix = f"{len(images)} files", "this server edits one picture at a time"
        raise UsageError("image", got=got, expected="one file", fix=fix)
    if len(masks) > 1:
        raise UsageError(MASK, got=f"{len(masks)} files", expected="one file")
    return images[0], masks[0] if masks else None


def _fields(pairs: Iterable[tuple[str, str]]) -> EditFields:
    """Returns the fields, checked; raises `RequestValidationError`."""
    try:
        return EditFields.model_validate(nested(pairs))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def nested(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Returns a form's fields as the JSON object that they stand for.

    OpenAI's client writes a list as `name[]`, once for each item, and a mapping as `name[key]`. A
    name that is repeated without brackets becomes a list, which fields of one value refuse.

    Example:
        >>> nested([("n", "2"), ("sigmas[]", "1"), ("sigmas[]", "0.5"), ("loras[fox]", "0.8")])
        {'n': '2', 'sigmas': ['1', '0.5'], 'loras': {'fox': '0.8'}}
    """
    found: dict[str, Any] = {}
    for name, text in pairs:
        stem, bracket, rest = name.partition("[")
        value = _structured(name, text)
        if bracket and rest == "]":
            found.setdefault(stem, [])
            found[stem] = [*_listed(found[stem]), value]
        elif bracket and rest.endswith("]") and isinstance(found.get(stem, {}), dict):
            found.setdefault(stem, {})[rest[:-1]] = value
        else:
            found[name] = [*_listed(found[name]), value] if name in found else value
    return found


def _listed(value: Any) -> list[Any]:
    """Returns a list unchanged, and anything else as a list of one."""
    return value if isinstance(value, list) else [value]


def _structured(name: str, text: str) -> Any:
    """Returns the value of a field: parsed, if it is one that may be JSON text."""
    if name not in STRUCTURED or text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        return parse_json(text)
    except ValueError as error:
        raise UsageError(name, got=short(text), expected="JSON, or a name") from error
