"""The captioned emoji that the embedded checkpoints were trained on."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

EMOJI_FILE = pathlib.Path(__file__).with_name("emoji.txt")
TEMPLATES = ("{article} {name}", "{name}", "{article} {name} emoji", "an icon of {article} {name}")
VARIATION_SELECTOR = 0xFE0F
PLURALS = frozenset({"cherries", "french fries", "glasses", "grapes", "pancakes", "paw prints"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One emoji: its Unicode name and the file that draws it."""

    name: str
    path: pathlib.Path

    @property
    def caption(self) -> str:
        """The canonical prompt, such as `a red heart`."""
        return captions(self.name)[0]


def chosen_names() -> tuple[str, ...]:
    """Returns the names of the chosen emoji, in dataset order."""
    return tuple(EMOJI_FILE.read_text(encoding="utf-8").split("\n"))[:-1]


def captions(name: str) -> tuple[str, ...]:
    """Returns the training captions of one emoji, the canonical one first."""
    article = "an" if name[0].lower() in "aeio" else "a"
    texts = [template.format(article=article, name=name) for template in TEMPLATES]
    if name in PLURALS:
        texts = [text.replace(f"{article} {name}", name) for text in texts]
    return tuple(dict.fromkeys(texts))


def find_samples(emoji: pathlib.Path, names: pathlib.Path) -> tuple[Sample, ...]:
    """Finds the drawing of every chosen name; raises ValueError if one is missing."""
    glyphs = {entry["name"]: glyph for glyph, entry in _read_names(names).items()}
    return tuple(_sample(emoji, glyphs, name) for name in chosen_names())


def load_images(samples: tuple[Sample, ...], size: int) -> npt.NDArray[np.float32]:
    """Loads drawings over white as RGB (N, 3, size, size) float32 in [-1, 1]."""
    pixels = np.stack([load_pixels(sample.path, size) for sample in samples])
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1.0)


def load_pixels(path: pathlib.Path, size: int) -> npt.NDArray[np.uint8]:
    """Loads one drawing over white as (size, size, 3) uint8."""
    with Image.open(path) as image:
        drawing = image.convert("RGBA")
    canvas = Image.new("RGBA", drawing.size, "white")
    canvas.alpha_composite(drawing)
    return np.asarray(canvas.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))


def _read_names(path: pathlib.Path) -> dict[str, dict[str, str]]:
    """Reads the Unicode data of each glyph; raises ValueError if the file has another format."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: expected an object of emoji -> name, got {type(entries)}")
    return entries


def _sample(emoji: pathlib.Path, glyphs: dict[str, str], name: str) -> Sample:
    """Finds one drawing; raises ValueError if the name or the file is missing."""
    if name not in glyphs:
        raise ValueError(f"emoji {name!r}: not among the names; is unicode-emoji-json 0.9.0 used?")
    for file in _file_names(glyphs[name]):
        if (emoji / file).is_file():
            return Sample(name=name, path=emoji / file)
    raise ValueError(f"emoji {name!r}: no drawing in {emoji}; is @lobehub/fluent-emoji-3d used?")


def _file_names(glyph: str) -> Iterator[str]:
    """Yields the names that a glyph's file may have."""
    points = [ord(point) for point in glyph]
    yield "-".join(f"{point:x}" for point in points) + ".webp"
    yield "-".join(f"{point:x}" for point in points if point != VARIATION_SELECTOR) + ".webp"
