"""SDXL's micro-conditioning: sizes and crop that its UNet reads beside the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eri_runtime.bundle import Bundle
from eri_runtime.checks import finite, items
from eri_runtime.errors import UsageError

Six = tuple[float, ...]
CROP = "crops_coords_top_left"
WORDS = ("original_size", CROP, "target_size")
NEGATIVE = tuple(f"negative_{name}" for name in WORDS)


@dataclass(frozen=True)
class MicroConditions:
    """What SDXL's UNet is told of the picture (Podell et al. 2023, arXiv 2307.01952, section 2.2).

    Attributes:
        positive: Original height and width, top and left of the crop, target height and width.
        negative: The same beside the negative prompt.
    """

    positive: Six
    negative: Six


def check_micro_conditions(
    bundle: Bundle, words: Mapping[str, Any], height: int, width: int
) -> MicroConditions | None:
    """Returns the micro-conditioning of a call, or None if it names none.

    Sizes that the call leaves out are those of the images. The negative ones are the positive ones,
    except that text to image needs both negative sizes, as in diffusers, and has its own negative
    crop then. Raises `UsageError` for a model other than SDXL, for what is no pair of numbers, and
    for a negative word that diffusers would ignore.
    """
    named = [name for name in (*WORDS, *NEGATIVE) if name in words]
    if not named:
        return None
    if bundle.family != "sdxl":
        got = f"it with a bundle of the {bundle.family} family"
        raise UsageError(named[0], got=got, expected="SDXL, whose UNet alone reads it")
    size = (float(height), float(width))
    defaults = {"original_size": size, CROP: (0.0, 0.0), "target_size": size}
    pairs = {name: _pair(name, words.get(name, defaults[name])) for name in WORDS}
    negatives = _negatives(words, pairs)
    return MicroConditions(_six(pairs), _six(negatives))


def _negatives(words: Mapping[str, Any], pairs: dict[str, Six]) -> dict[str, Six]:
    """Returns the negative pairs by the names of the positive ones."""
    given = {
        positive: _pair(name, words[name])
        for positive, name in zip(WORDS, NEGATIVE, strict=True)
        if name in words
    }
    is_edit = words.get("image") is not None
    sizes = {"original_size", "target_size"} & given.keys()
    if not is_edit and len(sizes) == 1:
        got, expected = f"negative_{sizes.pop()} alone", "both or neither, as diffusers reads"
        raise UsageError(
            "negative_original_size and negative_target_size", got=got, expected=expected
        )
    default = (0.0, 0.0) if sizes and not is_edit else pairs[CROP]
    crop = given.pop(CROP, default)
    if crop not in (default, (0.0, 0.0)):
        if is_edit or not sizes:
            fix = f"pass {CROP}, or for text to image the negative sizes too"
            got = "a crop that diffusers ignores here"
            raise UsageError(f"negative_{CROP}", got=got, expected="no such word", fix=fix)
        default = crop
    return {**pairs, **given, CROP: default}


def _pair(name: str, value: Any) -> Six:
    """Returns two finite numbers; raises `UsageError` for anything else."""
    expected = "two numbers, such as (1024, 1024)"
    listed = items(name, value, expected)
    if len(listed) != 2:
        raise UsageError(name, got=f"{len(listed)} of them", expected=expected)
    return tuple(finite(name, each) for each in listed)


def _six(pairs: Mapping[str, Six]) -> Six:
    """Returns the six numbers in the order of the UNet."""
    return tuple(number for name in WORDS for number in pairs[name])
