"""Another spacing of the timesteps than the checkpoint's, for one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import cast

from eri_runtime.bundle import LevelSpec, ScheduleKind, ScheduleSpec, Spacing
from eri_runtime.checks import one_of
from eri_runtime.errors import UsageError, short

# the spacings of each kind of schedule; EDM's levels are not taken from timesteps
SPACINGS_OF: Mapping[ScheduleKind, tuple[Spacing, ...]] = {
    "vp": ("leading", "trailing", "linspace"),
    "flow": ("trailing", "linspace"),
    "edm": (),
}


def with_spacing(spec: ScheduleSpec, spacing: Spacing | None) -> ScheduleSpec:
    """Returns the training schedule with another spacing; None: as it is."""
    return spec if spacing is None else dataclasses.replace(spec, spacing=spacing)


def check_spacing(
    spacing: object, kind: ScheduleKind, levels: LevelSpec | None, *, distilled: bool
) -> Spacing | None:
    """Returns a call's spacing, or None if it names none.

    Args:
        spacing: The name of a spacing, or None.
        kind: The kind of the training schedule.
        levels: The levels of the checkpoint's own scheduler, or None.
        distilled: Whether the sampler chooses its timesteps from those of a distillation.

    Raises:
        UnknownNameError: If this kind of schedule has no such spacing.
        UsageError: If the levels do not depend on a spacing.
    """
    if spacing is None:
        return None
    known = SPACINGS_OF[kind]
    if known:
        one_of("spacing", spacing, known)
    if not known:
        raise _unread(spacing, "EDM's levels, which have no timesteps")
    if distilled or (levels is not None and levels.grid == "distilled"):
        raise _unread(spacing, "the timesteps of a distillation")
    if levels is not None and levels.spread != "none" and levels.span == "training":
        raise _unread(spacing, f"{levels.spread} levels over all of training")
    if levels is not None and kind == "flow" and levels.grid != "points":
        raise _unread(spacing, "levels between N + 1 even ones")
    return cast(Spacing, spacing)


def _unread(spacing: object, levels: str) -> UsageError:
    return UsageError(
        "spacing",
        got=f"{short(spacing)} with {levels}",
        expected="none",
        fix="name another sampler, or leave out spacing",
    )
