"""Prompts: a single text, or several weighted texts that guide one image together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import items, real
from eri_runtime.checks import text as check_text
from eri_runtime.errors import UsageError, short
from eri_runtime.text.syntax import WeightedText, compose, take_loras

Syntax = Literal["plain", "a1111"]
PromptLike = str | Mapping[str, float]
PlainText = str | tuple[str, ...]  # a text for every text encoder, or one for each in their order
Text = PlainText | WeightedText
EXPECTED = "a string, a mapping of strings to weights, or a list of these"


@dataclass(frozen=True)
class Prompt:
    """The weighted texts that guide one image.

    Guidance composes them as F_neg + g·Σ w·(F − F_neg) (`sampling.guidance.cfg_mix`), where F is
    the denoiser's output for one text, w its weight, and g the guidance scale.

    Attributes:
        parts: Each text with its weight.
        others: The texts of the second and later text encoders, if they differ from the first's;
            only for a single text of weight 1.
        source: The prompt as it was written, if `parts` are what AUTOMATIC1111's syntax makes of
            it; else None.
        loras: Scales by name of the LoRAs that its tags name.

    Example:
        >>> from eri_runtime.text import Prompt
        >>> str(Prompt((("a fox", 0.7), ("a lake", 0.3))))
        'a fox :0.7 AND a lake :0.3'
    """

    parts: tuple[tuple[str, float], ...]
    others: tuple[str, ...] = ()
    source: str | None = None
    loras: tuple[tuple[str, float], ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it is one text of weight 1."""
        return len(self.parts) == 1 and self.parts[0][1] == 1

    def __str__(self) -> str:
        """Returns the text, or `a :0.7 AND b :0.3` for several, as AUTOMATIC1111 writes them."""
        if self.source is not None:
            return self.source
        if self.is_plain:
            return self.parts[0][0]
        return " AND ".join(f"{text} :{weight:g}" for text, weight in self.parts)


EMPTY_PROMPT = Prompt((("", 1.0),))


def make_prompt(prompt: object) -> Prompt:
    """Converts a string or a mapping of strings to weights; raises `UsageError` for others.

    UTF-8 must be able to encode the strings.
    """
    if isinstance(prompt, str):
        return Prompt(((check_text("prompt", prompt), 1.0),))
    if not isinstance(prompt, Mapping) or not prompt:
        raise UsageError("prompt", got=short(prompt), expected=EXPECTED)
    for text, weight in prompt.items():
        expected = "a string: a finite weight"
        if not isinstance(text, str):
            got = f"{short(text)}: {short(weight)}"
            raise UsageError("prompt", got=got, expected=expected)
        check_text("prompt", text)
        real(f"prompt {short(text)}", weight, expected, isfinite)
    return Prompt(tuple((text, float(weight)) for text, weight in prompt.items()))


def _composed(prompt: Prompt) -> Prompt:
    """Returns a prompt with its `AND`s split and its tags of LoRAs taken out.

    Raises `UsageError` for a bad tag.
    """
    parts, scales = [], dict[str, float]()
    for text, weight in prompt.parts:
        rest, loras = take_loras(text)
        parts += [(each, own * weight) for each, own in compose(rest)]
        for name, scale in loras.items():
            scales[name] = scales.get(name, 0.0) + scale
    return Prompt(tuple(parts), source=str(prompt), loras=tuple(scales.items()))


def make_prompts(
    prompt: PromptLike | Sequence[PromptLike] | None, syntax: Syntax = "plain"
) -> tuple[Prompt, ...]:
    """Converts one prompt or a list of them.

    Args:
        prompt: A string, a mapping of strings to weights, or a list of these.
        syntax: `"a1111"` splits the strings at `AND` and takes out tags of LoRAs.

    Returns:
        One `Prompt` per element of the list, or a single one.

    Raises:
        UsageError: If it is anything else, None, or an empty list.
    """
    single = isinstance(prompt, str | Mapping)
    prompts = [prompt] if single else items("prompt", prompt, EXPECTED)
    if not prompts:
        raise UsageError("prompt", got=short(prompt), expected=EXPECTED)
    made = map(make_prompt, prompts)
    return tuple(map(_composed, made)) if syntax == "a1111" else tuple(made)


def prompt_columns(
    prompts: Sequence[Prompt],
) -> Iterator[tuple[tuple[PlainText, ...], NDArray[np.float64]]]:
    """Yields the first text of every prompt with their weights (B,), then the second, and so on.

    A prompt of fewer texts is padded with its first text at weight 0. A prompt with texts for
    single text encoders gives all of them at once.
    """
    for i in range(max(len(prompt.parts) for prompt in prompts)):
        parts = [
            prompt.parts[i] if i < len(prompt.parts) else (prompt.parts[0][0], 0.0)
            for prompt in prompts
        ]
        texts, weights = zip(*parts, strict=True)
        yield tuple(map(for_encoders, texts, (each.others for each in prompts))), np.array(weights)


def text_of(text: PlainText, encoder: int) -> str:
    """Returns the text of an encoder, counted from 1."""
    return text if isinstance(text, str) else text[encoder - 1]


def for_encoders(text: str, others: tuple[str, ...]) -> PlainText:
    """Returns the text of every encoder: one, or the first's and the others' own."""
    return (text, *others) if set(others) - {text} else text
