"""A call's step caching: `step_cache` and `step_cache_threshold`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from eri_runtime.bundle import DENOISER, Bundle
from eri_runtime.checks import one_of, real
from eri_runtime.errors import UsageError

FIRST_BLOCK = "first_block"
CACHE_THRESHOLD = 0.1  # by default


@dataclass(frozen=True)
class StepCache:
    """How the steps of a request are cached.

    Attributes:
        threshold: Relative change of the first block's residual below which a step skips the other
            blocks.
    """

    threshold: float


def check_step_cache(bundle: Bundle, words: Mapping[str, Any]) -> StepCache | None:
    """Returns the step cache of a call, or None.

    Raises `UsageError` for a threshold that is none, or without `step_cache`, and for a bundle
    whose denoiser is not cut at its first block.
    """
    name, threshold = "step_cache_threshold", words.get("step_cache_threshold", CACHE_THRESHOLD)
    if "step_cache" not in words:
        if name in words:
            fix = f'pass step_cache="{FIRST_BLOCK}" too'
            raise UsageError(name, got="no step_cache", expected="both, or neither", fix=fix)
        return None
    one_of("step_cache", words["step_cache"], (FIRST_BLOCK,))
    least = real(name, threshold, "a number, 0 or more", lambda x: isfinite(x) and x >= 0)
    if not bundle.components[DENOISER].step_cache:
        raise UsageError(
            "step_cache",
            got="a bundle whose denoiser is not cut at its first block",
            expected="one that is",
            fix=f"run `eri upgrade {bundle.root}`, or export it again",
        )
    return StepCache(least)
