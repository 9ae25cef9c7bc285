"""Several texts for one picture (`a :0.7 AND b`), and LoRAs in a text (`<lora:name:0.8>`)."""

from __future__ import annotations

import re
from contextlib import suppress
from math import isfinite

from eri_runtime.errors import UsageError, short
from eri_runtime.text.syntax.number import NUMBER

AND = re.compile(r"\bAND\b")
WEIGHT = re.compile(rf"\s*({NUMBER})\s*", re.ASCII)
TAG = re.compile(r"<lora:([^<>]*)>")
EXPECTED = "<lora:name> or <lora:name:weight> with a finite number"


def compose(prompt: str) -> tuple[tuple[str, float], ...]:
    """Splits a prompt at `AND`; returns each text with the weight behind its last colon, or 1.

    A weight behind the last colon of a prompt without `AND` is one too, as in AUTOMATIC1111.
    """
    return tuple(map(_weighted, AND.split(prompt)))


def _weighted(text: str) -> tuple[str, float]:
    """Returns a text and its weight."""
    front, _, behind = text.rpartition(":")
    found = WEIGHT.fullmatch(behind)
    if not front or found is None or not isfinite(float(found[1])):
        return text, 1.0
    return front.rstrip(), float(found[1])


def take_loras(prompt: str) -> tuple[str, dict[str, float]]:
    """Splits a prompt into its text and its LoRAs.

    Args:
        prompt: The prompt, with any number of tags.

    Returns:
        The prompt without tags, and the weights by name. A tag without a weight has weight 1; the
        weights of a name that comes twice are added.

    Raises:
        UsageError: For a tag without a name or with a bad weight.
    """
    weights: dict[str, float] = {}
    for tag in TAG.finditer(prompt):
        name, weight = _parsed(tag)
        weights[name] = weights.get(name, 0.0) + weight
    return TAG.sub("", prompt).strip() if weights else prompt, weights


def _parsed(tag: re.Match[str]) -> tuple[str, float]:
    """Returns the name and weight of a tag."""
    name, colon, text = tag[1].partition(":")
    with suppress(ValueError):
        weight = float(text) if colon else 1.0
        if name and isfinite(weight):
            return name, weight
    raise UsageError("lora", got=short(tag[0]), expected=EXPECTED)
