"""Whether a prompt is plainly written in AUTOMATIC1111's syntax."""

from __future__ import annotations

import re

from eri_runtime.text.syntax.number import NUMBER

PLAIN_SIGNS = re.compile(
    rf"\([^()]*:\s*{NUMBER}\s*\)"  # (word:1.3)
    r"|\(\([^()]+\)\)"  # ((word))
    rf"|\[[^\[\]]*:\s*{NUMBER}\s*\]"  # [a:b:0.4]
    r"|\[[^\[\]]*\|[^\[\]]*\]"  # [a|b]
    r"|<lora:[^<>]+>"
    r"|\bBREAK\b",
    re.ASCII,
)

LOOKED_AT = 2000  # characters of a text


def plainly_uses_syntax(text: str) -> bool:
    """Returns whether a text has weights, schedules, LoRAs or breaks that few mean as text."""
    return PLAIN_SIGNS.search(text[:LOOKED_AT]) is not None
