"""The sizes a bundle is to serve, as its user says them: pixels, images and text tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from eri_runtime.errors import UsageError
from eri_runtime.spec import ShapeRange

SIDES = re.compile(r"(\d+)(?:x(\d+))?")  # 1024 or 1024x768, width first
COUNT = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Sizes to serve: only the best one was said, or the smallest and the largest too."""

    opt: int
    min: int | None = None
    max: int | None = None

    def within(self, usual: ShapeRange) -> ShapeRange:
        """The wished range; what was not said is the usual, stretched to hold the best."""
        return ShapeRange(
            min=min(usual.min, self.opt) if self.min is None else self.min,
            opt=self.opt,
            max=max(usual.max, self.opt) if self.max is None else self.max,
        )


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """What to serve beside the family's usual sizes; `static` fixes every size at its best.

    `height` and `width` are pixels of the image, `batch` images of one call, `tokens` the text's:
    T5's where there is one, else what the denoiser reads.
    """

    height: Wish | None = None
    width: Wish | None = None
    batch: Wish | None = None
    tokens: Wish | None = None
    static: bool = False


USUAL = Ranges()


def make_ranges(
    *,
    size: str | None = None,
    batch: str | None = None,
    tokens: str | None = None,
    static: bool = False,
) -> Ranges:
    """`size` is WxH or W (a square), the others a number; each alone or as MIN:OPT:MAX.

    Raises `UsageError` for anything else.
    """
    width, height = _wishes("size", size, _sides) if size else (None, None)
    (images,) = _wishes("batch", batch, _count) if batch else (None,)
    (words,) = _wishes("tokens", tokens, _count) if tokens else (None,)
    return Ranges(height=height, width=width, batch=images, tokens=words, static=static)


def _sides(text: str) -> tuple[int, ...] | None:
    found = SIDES.fullmatch(text)
    return (int(found[1]), int(found[2] or found[1])) if found else None


def _count(text: str) -> tuple[int, ...] | None:
    return (int(text),) if COUNT.fullmatch(text) else None


def _wishes(
    name: str, text: str, parse: Callable[[str], tuple[int, ...] | None]
) -> tuple[Wish, ...]:
    """One wish for each number that an item of `text` holds."""
    parsed = [parse(item) for item in text.split(":")]
    items = [item for item in parsed if item is not None and min(item) > 0]
    if len(items) != len(parsed) or len(items) not in (1, 3):
        form = "WxH" if name == "size" else "N"
        raise UsageError(name, got=repr(text), expected=f"{form} or MIN:OPT:MAX of positive {form}")
    if len(items) == 1:
        return tuple(Wish(opt=value) for value in items[0])
    wishes = tuple(
        Wish(min=low, opt=best, max=high) for low, best, high in zip(*items, strict=True)
    )
    for wish in wishes:
        if sorted((wish.min or 0, wish.opt, wish.max or 0)) != [wish.min, wish.opt, wish.max]:
            raise UsageError(name, got=repr(text), expected="MIN ≤ OPT ≤ MAX")
    return wishes
