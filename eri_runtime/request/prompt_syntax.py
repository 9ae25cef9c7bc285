"""Which syntax the prompts of a call have."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, cast, get_args

from eri_runtime.checks import one_of
from eri_runtime.text import Syntax, plainly_uses_syntax

log = logging.getLogger(__name__)


def check_prompt_syntax(words: Mapping[str, Any], *texts: Any) -> Syntax:
    """Returns the syntax of a call's prompts; default: plain.

    Logs a warning, once a process, if a text is plainly in AUTOMATIC1111's syntax and the call does
    not say which syntax it has.
    """
    name = words.get("prompt_syntax")
    if name is not None:
        return cast(Syntax, one_of("prompt_syntax", name, get_args(Syntax)))
    flat = (each for text in texts for each in ([text] if isinstance(text, str) else text or ()))
    if any(isinstance(each, str) and plainly_uses_syntax(each) for each in flat):
        _warn_of_syntax()
    return "plain"


@cache
def _warn_of_syntax() -> None:
    """Logs that a prompt looks like another syntax; a second call does nothing."""
    log.warning(
        "a prompt has weights, schedules or LoRAs as AUTOMATIC1111 writes them, which are read as "
        "plain text; pass prompt_syntax='a1111' (or 'plain' to end this warning)"
    )
