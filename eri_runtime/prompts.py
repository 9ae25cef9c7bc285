"""Prompts: a text, or several that guide one image together, each with its weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import UsageError, short

PromptLike = str | Mapping[str, float]
EXPECTED = "a string, a mapping of strings to weights, or a list of these"


@dataclass(frozen=True)
class Prompt:
    """Texts and weights w of one image: F_neg + g·Σ w·(F − F_neg) (`guidance.cfg_mix`)."""

    parts: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        """The text, or AUTOMATIC1111's `a :0.7 AND b :0.3` for several."""
        if len(self.parts) == 1 and self.parts[0][1] == 1:
            return self.parts[0][0]
        return " AND ".join(f"{text} :{weight:g}" for text, weight in self.parts)


EMPTY = Prompt((("", 1.0),))


def make_prompt(given: object) -> Prompt:
    """A checked prompt; raises `UsageError` for what is none."""
    if isinstance(given, str):
        return Prompt(((given, 1.0),))
    if not isinstance(given, Mapping) or not given:
        raise UsageError("prompt", got=short(given), expected=EXPECTED)
    for text, weight in given.items():
        if not isinstance(text, str) or not isinstance(weight, int | float) or not isfinite(weight):
            got = f"{short(text)}: {short(weight)}"
            raise UsageError("prompt", got=got, expected="a string: a finite weight")
    return Prompt(tuple((text, float(weight)) for text, weight in given.items()))


def make_prompts(given: PromptLike | Sequence[PromptLike] | None) -> tuple[Prompt, ...]:
    """One prompt or a list of them; raises `UsageError` for anything else, or for none."""
    if given is None or (not isinstance(given, str | Mapping) and not list(given)):
        raise UsageError("prompt", got=short(given), expected=EXPECTED)
    many = [given] if isinstance(given, str | Mapping) else given
    return tuple(make_prompt(each) for each in many)


def columns(prompts: Sequence[Prompt]) -> Iterator[tuple[tuple[str, ...], NDArray[np.float64]]]:
    """The first text of every prompt with their weights, the second, …; (B,) each.

    A prompt of fewer texts is filled up with its first one at weight 0.
    """
    for i in range(max(len(prompt.parts) for prompt in prompts)):
        parts = [
            prompt.parts[i] if i < len(prompt.parts) else (prompt.parts[0][0], 0.0)
            for prompt in prompts
        ]
        texts, weights = zip(*parts, strict=True)
        yield texts, np.array(weights)
