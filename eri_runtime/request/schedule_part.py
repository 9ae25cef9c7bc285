"""Which noise levels of its schedule a call runs: timesteps of its own, a start and an end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from eri_runtime.bundle import Bundle
from eri_runtime.checks import items, real
from eri_runtime.errors import UsageError, short
from eri_runtime.sampling import Schedule

SHARE = "more than 0, less than 1"


@dataclass(frozen=True)
class SchedulePart:
    """The checked `timesteps`, `denoising_start`, `denoising_end` and `mu` of a call.

    Attributes:
        timesteps: Training timesteps, falling, instead of the schedule's; or None.
        start: Share of the training timesteps before which nothing is run, or None.
        end: Share of the training timesteps after which nothing is run, or None.
        mu: Shift of a flow's levels instead of that of the picture's size, or None.
    """

    timesteps: tuple[float, ...] | None = None
    start: float | None = None
    end: float | None = None
    mu: float | None = None


def check_schedule_part(bundle: Bundle, words: Mapping[str, Any]) -> SchedulePart:
    """Checks the words that pick a part of the schedule.

    Raises `UsageError` for shares that are no numbers between 0 and 1, a start that is not before
    the end or has no image, timesteps that do not fall, and for words that the schedule has no use
    for.
    """
    start, end = _share("denoising_start", words), _share("denoising_end", words)
    name = "denoising_start" if start is not None else "denoising_end"
    if (start is not None or end is not None) and bundle.schedule.kind == "edm":
        raise UsageError(name, got="it with an EDM schedule", expected="timesteps that are counted")
    if start is not None:
        if end is not None and start >= end:
            expected = f"less than denoising_end, which is {end:g}"
            raise UsageError(name, got=f"{start:g}", expected=expected)
        if words.get("image") is None:
            raise UsageError(name, got="no image", expected="an image, or latents, to go with it")
        if words.get("strength") is not None:
            raise UsageError("strength", got="it with denoising_start", expected="one of them")
    return SchedulePart(_timesteps(bundle, words), start, end, _mu(bundle, words))


def _share(name: str, words: Mapping[str, Any]) -> float | None:
    """Returns a share, or None if the call has none."""
    if name not in words:
        return None
    return real(name, words[name], SHARE, lambda share: 0 < share < 1)


def _timesteps(bundle: Bundle, words: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Returns the timesteps of a call, or None."""
    if "timesteps" not in words:
        return None
    for other in ("sigmas", "spacing"):
        if other in words:
            raise UsageError("timesteps", got=f"timesteps and {other}", expected="one of them")
    spec = bundle.schedule
    if spec.kind == "edm":
        raise UsageError("timesteps", got="it with an EDM schedule", expected="sigmas")
    high = spec.num_train_timesteps - (spec.kind == "vp")
    least = "0" if spec.kind == "vp" else "more than 0"
    expected = f"numbers, each less than the one before, {least} to {high}"

    def usable(t: float) -> bool:
        return 0 <= t <= high and (t > 0 or spec.kind == "vp")

    listed = items("timesteps", words["timesteps"], expected)
    checked = tuple(real("timesteps", each, expected, usable) for each in listed)
    if not checked or any(a <= b for a, b in pairwise(checked)):
        raise UsageError("timesteps", got=short(words["timesteps"]), expected=expected)
    return checked


def _mu(bundle: Bundle, words: Mapping[str, Any]) -> float | None:
    """Returns the shift `mu` of a call, or None."""
    if "mu" not in words:
        return None
    mu = real("mu", words["mu"], "a number, -10 to 10", lambda number: -10 <= number <= 10)
    if bundle.schedule.kind != "flow" or not bundle.schedule.dynamic_shift:
        got = "it with a checkpoint whose shift does not depend on the size"
        raise UsageError("mu", got=got, expected="a call without it")
    return mu


def at_timesteps(schedule: Schedule, timesteps: tuple[float, ...]) -> Schedule:
    """Returns a schedule with these timesteps and the same final point."""
    points = [schedule.clock.at_t(t) for t in timesteps]
    t, alpha, sigma = np.array([*points, schedule[len(schedule)]]).T
    return Schedule(t, alpha, sigma, schedule.clock, start=schedule.start)


def run_from(schedule: Schedule, share: float) -> Schedule:
    """Returns the steps below diffusers' cutoff of `denoising_start`.

    Raises `UsageError` if there is none.
    """
    count = int((schedule.t[:-1] < _cutoff(schedule, share)).sum())
    return _some("denoising_start", schedule, len(schedule) - count, count)


def run_to(schedule: Schedule, share: float) -> Schedule:
    """Returns the steps from diffusers' cutoff of `denoising_end` up.

    Raises `UsageError` if there is none.
    """
    count = int((schedule.t[:-1] >= _cutoff(schedule, share)).sum())
    return _some("denoising_end", schedule, 0, count)


def _cutoff(schedule: Schedule, share: float) -> int:
    """Returns the training timestep at a share of the training schedule, as diffusers rounds it."""
    count = len(schedule.clock.training)
    return round(count - share * count)


def _some(name: str, schedule: Schedule, first: int, count: int) -> Schedule:
    """Returns `count` steps from `first`; raises `UsageError` for none."""
    if count < 1:
        got = f"no step of {len(schedule)}"
        raise UsageError(name, got=got, expected="a step or more", fix="raise num_inference_steps")
    return schedule.part(first, count)
