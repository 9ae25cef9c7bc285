"""Which syntax the prompts of a call have."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, cast, get_args

from eri_runtime.checks import one_of
from eri_runtime.text import Syntax, plainly_uses_syntax

NAMES = get_args(Syntax)

log = logging.getLogger(__name__)


def check_prompt_syntax(words: Mapping[str, Any]) -> Syntax:
    """Returns the syntax of a call's prompts; default: plain. Raises `UnknownNameError`."""
    return cast(Syntax, one_of("prompt_syntax", words.get("prompt_syntax", "plain"), NAMES))


def warn_of_syntax(words: Mapping[str, Any], texts: Iterable[str]) -> None:
    """Logs a warning if a text is plainly in AUTOMATIC1111's syntax and the call names none.

    Does so once a process.
    """
    if "prompt_syntax" not in words and any(map(plainly_uses_syntax, texts)):
        _warn_of_syntax()


@cache
def _warn_of_syntax() -> None:
    """Logs that a prompt looks like another syntax; a second call does nothing."""
    log.warning(
        "a prompt has weights, schedules or LoRAs as AUTOMATIC1111 writes them, which are read as "
        "plain text; pass prompt_syntax='a1111' (or 'plain' to end this warning)"
    )
