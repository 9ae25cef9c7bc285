"""The server's LoRAs that a prompt names by tags, `<lora:name:weight>`."""

from __future__ import annotations

from collections.abc import Collection

from eri_runtime.errors import UnknownNameError, short
from eri_runtime.text import take_loras


def take_known_loras(prompt: str, known: Collection[str]) -> tuple[str, dict[str, float]]:
    """Splits a prompt into its text and its LoRAs, as `eri_runtime.text.take_loras` does.

    Raises `UnknownNameError` for a LoRA that is not in `known`, the server's names, and
    `UsageError` for a tag without a name or with a bad weight.
    """
    text, weights = take_loras(prompt)
    for name in weights:
        if name not in known:
            expected = f"one of {', '.join(known)}" if known else "no LoRA, as the server has none"
            raise UnknownNameError("lora", got=short(name), expected=expected)
    return text, weights
