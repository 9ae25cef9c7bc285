"""PNG files with AUTOMATIC1111's `parameters` text, written atomically."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eri_runtime.partial_files import claim, complete, partial_file

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo


def parameters_text(prompt: str, negative_prompt: str, settings: Mapping[str, object]) -> str:
    """Returns AUTOMATIC1111's `parameters` text: prompt, negative prompt and a line of settings.

    The negative prompt is left out if it is empty. Values that contain a comma, colon or newline
    are JSON-quoted, as readers of the format expect.

    Example:
        >>> from eri_runtime.images import parameters_text
        >>> print(parameters_text("a fox", "blurry", {"Steps": 4, "Size": "64x64"}))
        a fox
        Negative prompt: blurry
        Steps: 4, Size: 64x64
    """
    negative_line = [f"Negative prompt: {negative_prompt}"] if negative_prompt else []
    settings_line = ", ".join(f"{key}: {_quote(str(value))}" for key, value in settings.items())
    return "\n".join([prompt, *negative_line, settings_line])


def _quote(value: str) -> str:
    """JSON-quotes a value that contains a comma, colon or newline."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(",:\n") else value


def save_png(image: Image, path: str | Path, parameters: str, *, overwrite: bool = True) -> Path:
    """Writes `image` as a PNG with a `parameters` text chunk, atomically, and returns the path.

    `overwrite` is as in `write_png`.
    """
    return write_png(image, path, overwrite=overwrite, pnginfo=_png_info(parameters))


def png_bytes(image: Image, parameters: str) -> bytes:
    """Returns the content of the file that `save_png` writes."""
    stream = io.BytesIO()
    image.save(stream, format="PNG", pnginfo=_png_info(parameters))
    return stream.getvalue()


def _png_info(parameters: str) -> PngInfo:
    """Returns the `parameters` text chunk."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    add_text = info.add_text if parameters.isascii() else info.add_itxt
    add_text("parameters", parameters)
    return info


def write_png(image: Image, path: str | Path, *, overwrite: bool = True, **options: Any) -> Path:
    """Writes `image` as a PNG and returns the path.

    The file is written under a temporary name and renamed, so that it appears complete or not at
    all. Creates missing folders. Without `overwrite`, raises `FileExistsError` if the name is
    taken, also by another process at the same time. `options` go to Pillow's `Image.save`.
    """
    path = Path(path)
    with partial_file(path) as (file, partial):
        image.save(file, format="PNG", **options)
        file.flush()
        if overwrite:
            complete(partial, path)
        else:
            claim(partial, path)
    return path
