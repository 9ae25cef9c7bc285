"""The sizes a bundle should serve, in the user's terms: pixels, images and text tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from eri_runtime.bundle import ShapeRange
from eri_runtime.errors import UsageError, short

SIDES = re.compile(r"(\d+)(?:x(\d+))?")  # 1024 or 1024x768, width first
COUNT = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class RequestedSizes:
    """The sizes the user requests along one dimension.

    Attributes:
        opt: The size to serve best.
        min: The smallest size; default: the family's usual one, or `opt` if that is smaller.
        max: The largest size; default: the family's usual one, or `opt` if that is larger.
    """

    opt: int
    min: int | None = None
    max: int | None = None

    def within(self, usual: ShapeRange) -> ShapeRange:
        """Returns the requested range, with missing ends from `usual`, stretched to hold `opt`."""
        return ShapeRange(
            min=min(usual.min, self.opt) if self.min is None else self.min,
            opt=self.opt,
            max=max(usual.max, self.opt) if self.max is None else self.max,
        )


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """The sizes a bundle should serve; default: the family's usual ones.

    Attributes:
        height: Heights of the image in pixels.
        width: Widths of the image in pixels.
        batch: Images per call.
        tokens: Text tokens: T5's in a family that has a T5, else those the denoiser reads.
        static: Fix every size at its best one, for a graph without dynamic dimensions.
    """

    height: RequestedSizes | None = None
    width: RequestedSizes | None = None
    batch: RequestedSizes | None = None
    tokens: RequestedSizes | None = None
    static: bool = False


USUAL = Ranges()


def make_ranges(
    *,
    size: str | None = None,
    batch: str | None = None,
    tokens: str | None = None,
    static: bool = False,
) -> Ranges:
    """Parses `Ranges` from text, as the command line gives them.

    Each text is one size or MIN:OPT:MAX; one that is missing means the family's usual sizes.

    Args:
        size: Pixels: WxH, or W for a square.
        batch: Images per call.
        tokens: Text tokens.
        static: Fix every size at its best one.

    Returns:
        The ranges.

    Raises:
        UsageError: If a text has another form, or MIN ≤ OPT ≤ MAX does not hold.

    Example:
        >>> from eri_export.choices import make_ranges
        >>> make_ranges(size="512:1024:2048").height
        RequestedSizes(opt=1024, min=512, max=2048)
    """
    width, height = _requested("size", size, _sides) if size else (None, None)
    (images,) = _requested("batch", batch, _count) if batch else (None,)
    (text_tokens,) = _requested("tokens", tokens, _count) if tokens else (None,)
    return Ranges(height=height, width=width, batch=images, tokens=text_tokens, static=static)


def _sides(text: str) -> tuple[int, ...] | None:
    match = SIDES.fullmatch(text)
    return (int(match[1]), int(match[2] or match[1])) if match else None


def _count(text: str) -> tuple[int, ...] | None:
    return (int(text),) if COUNT.fullmatch(text) else None


def _requested(
    name: str, text: str, parse: Callable[[str], tuple[int, ...] | None]
) -> tuple[RequestedSizes, ...]:
    """Returns the requested sizes of each dimension in `text`: two for WxH, one for a number.

    Raises `UsageError` for a text of another form or order.
    """
    parsed = [parse(item) for item in text.split(":")]
    items = [item for item in parsed if item is not None and min(item) > 0]
    if len(items) != len(parsed) or len(items) not in (1, 3):
        form = "WxH" if name == "size" else "N"
        raise UsageError(
            name, got=short(text), expected=f"{form} or MIN:OPT:MAX of positive {form}"
        )
    if len(items) == 1:
        return tuple(RequestedSizes(opt=value) for value in items[0])
    requested = tuple(
        RequestedSizes(min=low, opt=best, max=high) for low, best, high in zip(*items, strict=True)
    )
    for each in requested:
        if sorted((each.min or 0, each.opt, each.max or 0)) != [each.min, each.opt, each.max]:
            raise UsageError(name, got=short(text), expected="MIN ≤ OPT ≤ MAX")
    return requested
