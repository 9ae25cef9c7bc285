"""Prompts of a text encoder's own: `prompt_2`, `prompt_3` and their negative counterparts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from eri_runtime.bundle import Bundle
from eri_runtime.checks import items, text
from eri_runtime.errors import UsageError
from eri_runtime.text import Condition, Prompt

ENCODERS = {"sdxl": 2, "sd35": 3, "flux": 2}  # text encoders of a family, in diffusers' order


def check_encoder_prompts(
    bundle: Bundle,
    words: Mapping[str, Any],
    prompts: tuple[Prompt, ...],
    positive: Condition | None,
) -> tuple[Prompt, ...]:
    """Returns the prompts with the texts of `prompt_2` and `prompt_3`, if there are any.

    As in diffusers an encoder without a text of its own gets the prompt's, and so does one whose
    text is empty and not in a list. Raises `UsageError` for a text that the family has no encoder
    for, beside embeddings or weighted texts, or for another number of texts than prompts.
    """
    firsts = tuple(prompt.parts[0][0] for prompt in prompts)
    others = _own_texts(bundle, words, "prompt", firsts, given=positive is not None)
    if others is None:
        return prompts
    for prompt in prompts:
        if not prompt.is_plain:
            got = "texts with weights and a text for one encoder"
            raise UsageError("prompt", got=got, expected="one of them")
    return tuple(replace(prompt, others=own) for prompt, own in zip(prompts, others, strict=True))


def check_negative_encoder_prompts(
    bundle: Bundle,
    words: Mapping[str, Any],
    negatives: tuple[str, ...] | None,
    count: int,
    negative: Condition | None,
) -> tuple[tuple[str, ...] | None, tuple[tuple[str, ...], ...] | None]:
    """Returns the negative prompts, and the further encoders' own or None.

    Raises the errors of `check_encoder_prompts`, and `UsageError` where diffusers would ignore them
    because there is no `negative_prompt`.
    """
    firsts = ("",) * count if negatives is None else negatives
    others = _own_texts(bundle, words, "negative_prompt", firsts, given=negative is not None)
    if others is None:
        return negatives, None
    if negatives is None and (bundle.family == "flux" or bundle.zero_empty_negative):
        got, fix = "no negative_prompt beside it", 'pass negative_prompt="" too'
        raise UsageError("negative_prompt_2", got=got, expected="both", fix=fix)
    return firsts, others


def _own_texts(
    bundle: Bundle, words: Mapping[str, Any], name: str, firsts: Sequence[str], *, given: bool
) -> tuple[tuple[str, ...], ...] | None:
    """Returns for each prompt the texts of encoders 2 and 3, or None if no word has any.

    `given` says that the call has embeddings in their place.
    """
    named = [f"{name}_{i}" for i in (2, 3) if f"{name}_{i}" in words]
    if not named:
        return None
    if words.get("prompt_syntax", "plain") != "plain":
        got, expected = f"{named[0]} and prompt_syntax='a1111'", "one text for all encoders"
        raise UsageError(named[0], got=got, expected=expected)
    encoders = ENCODERS[bundle.family]
    if (last := named[-1]).endswith("_3") and encoders < 3:
        got = f"a text for a third encoder of {bundle.family}"
        raise UsageError(last, got=got, expected=f"texts for {encoders} encoders")
    if given:
        raise UsageError(named[0], got=f"{named[0]} and {name}_embeds", expected="one of them")
    columns = [_listed(f"{name}_{i}", words, firsts) for i in range(2, encoders + 1)]
    return tuple(zip(*columns, strict=True))


def _listed(name: str, words: Mapping[str, Any], firsts: Sequence[str]) -> tuple[str, ...]:
    """Returns one encoder's texts, one per prompt."""
    value = words.get(name)
    if value is None or (isinstance(value, str) and not value):
        return tuple(firsts)
    expected = "a string, or a list of one per prompt"
    listed = [value] * len(firsts) if isinstance(value, str) else items(name, value, expected)
    if len(listed) != len(firsts):
        raise UsageError(name, got=f"{len(listed)} texts", expected=f"1 or {len(firsts)}")
    return tuple(text(name, each) for each in listed)
