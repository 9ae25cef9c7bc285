"""`<lora:name:weight>` in a prompt, as AUTOMATIC1111's users write it."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from math import isfinite

from eri_runtime.errors import UnknownNameError, UsageError, short

TAG = re.compile(r"<lora:([^<>]*)>")
EXPECTED = "<lora:name> or <lora:name:weight> with a finite number"


def take_loras(prompt: str, known: Collection[str]) -> tuple[str, dict[str, float]]:
    """Splits a prompt into its text and its LoRAs.

    Args:
        prompt: The prompt, with any number of tags.
        known: Names of the LoRAs that the server has.

    Returns:
        The prompt without tags, and the weights by name. A tag without a weight has weight 1; the
        weights of a name that comes twice are added.

    Raises:
        UnknownNameError: For a LoRA that is not in `known`.
        UsageError: For a tag without a name or with a bad weight.
    """
    weights: dict[str, float] = {}
    for tag in TAG.finditer(prompt):
        name, weight = _parsed(tag)
        if name not in known:
            expected = f"one of {', '.join(known)}" if known else "no LoRA, as the server has none"
            raise UnknownNameError("lora", got=short(name), expected=expected)
        weights[name] = weights.get(name, 0.0) + weight
    return TAG.sub("", prompt).strip(), weights


def _parsed(tag: re.Match[str]) -> tuple[str, float]:
    """Returns the name and weight of a tag."""
    name, colon, text = tag[1].partition(":")
    with suppress(ValueError):
        weight = float(text) if colon else 1.0
        if name and isfinite(weight):
            return name, weight
    raise UsageError("lora", got=short(tag[0]), expected=EXPECTED)
