"""A call's sampler, and the noise levels that names of AUTOMATIC1111 mean."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from eri_runtime.bundle import Bundle
from eri_runtime.errors import UnknownNameError, UsageError, short
from eri_runtime.sampling import Sampler, choose_sampler, choose_scheduler


def check_sampler(bundle: Bundle, words: Mapping[str, Any]) -> tuple[Sampler, dict[str, Any]]:
    """Returns the sampler, and the keywords with the noise levels that names of AUTOMATIC1111 mean.

    These are a scheduler behind the sampler's name (`DPM++ 2M Karras`), or in `sigmas` (`SGM
    Uniform`). Raises `UsageError` if they contradict a keyword.
    """
    name = words.get("sampler", bundle.defaults.sampler)
    sampler, scheduler = choose_sampler(name, bundle.schedule.kind)
    keywords, named = dict(words), []
    if isinstance(words.get("sigmas"), str):
        named.append(_named_levels(keywords.pop("sigmas")))
    if scheduler is not None:
        named.append(scheduler.keywords)
    for levels in named:
        for key, value in levels.items():
            if keywords.setdefault(key, value) != value:
                got = f"{short(keywords[key])} and {short(value)} ({short(name)})"
                raise UsageError(key, got=got, expected="one of them")
    return sampler, keywords


def _named_levels(name: str) -> Mapping[str, str]:
    """Returns the keywords of noise levels by AUTOMATIC1111's name, or `sigmas` of any other."""
    with suppress(UnknownNameError):
        return choose_scheduler(name).keywords
    return {"sigmas": name}
