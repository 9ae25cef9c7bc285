"""The part of the manifest that says how the checkpoint's scheduler chooses its noise levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Grid = Literal["points", "intervals", "open", "distilled"]
Spread = Literal["none", "karras", "exponential", "beta", "log_linear"]
Span = Literal["chosen", "training"]
Rounding = Literal["exact", "nearest", "down", "log"]
Start = Literal["unit", "sigma"]


@dataclass(frozen=True, kw_only=True)
class LevelSpec:
    """How a scheduler of diffusers chooses N noise levels and their timesteps.

    A call that names neither a sampler nor noise levels uses it.

    Attributes:
        grid: How N timesteps are chosen. `points`: N of the training timesteps in the schedule's
            spacing. `intervals`: the first N of N + 1, as DPM-Solver's schedulers do, and for
            `flow` from just below 1. `open`: N levels of a flow from 1 down, without the last of
            N + 1 (UniPC). `distilled`: those on which a consistency model was trained.
        original_steps: Number of timesteps of `distilled`.
        spread: The curve on which the levels are placed anew between the first and the last.
        span: Which first and last: those of the chosen timesteps, or those of training.
        sigma_min: Last level of `spread` in sigma/alpha; None: as `span` says.
        sigma_max: First level of `spread` in sigma/alpha; None: as `span` says.
        timesteps: How the network's timestep is rounded; `log` is ln(sigma/alpha)/4.
        start: The initial noise, of unit size or sigma_0, unless the spacing is `leading`.
        stride: Whether a step leads from t to t − T//N, which may not be the next timestep (DDIM).
    """

    grid: Grid = "points"
    original_steps: int = 50
    spread: Spread = "none"
    span: Span = "chosen"
    sigma_min: float | None = None
    sigma_max: float | None = None
    timesteps: Rounding = "exact"
    start: Start = "sigma"
    stride: bool = False
