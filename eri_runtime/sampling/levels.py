"""The noise levels of a checkpoint's own scheduler, as diffusers' class of it chooses them."""

from __future__ import annotations

import dataclasses

import numpy as np

from eri_runtime.bundle import LevelSpec, ScheduleSpec
from eri_runtime.errors import UsageError, short
from eri_runtime.sampling.betas import alphas_cumprod
from eri_runtime.sampling.schedule import (
    Clock,
    Schedule,
    distilled_timesteps,
    edm_schedule,
    flow_schedule,
    flow_shift,
    shift_sigma,
    stretched,
)
from eri_runtime.sampling.sigmas import Float64, spaced_levels

BELOW_ONE = 1e-6  # UniPC's distance from pure noise, where log(alpha/sigma) is infinite


def scheduler_schedule(spec: ScheduleSpec, levels: LevelSpec, steps: int, tokens: int) -> Schedule:
    """Returns the N points of the checkpoint's own scheduler, and the final one.

    Args:
        spec: The training schedule.
        levels: How the scheduler chooses its levels.
        steps: Number of denoising steps N.
        tokens: Number of the denoiser's image tokens, for a resolution-dependent shift.

    Raises:
        UsageError: If `steps` is out of range.
    """
    most = spec.num_train_timesteps
    if levels.grid == "distilled":
        most = min(most, levels.original_steps)
    if not isinstance(steps, int | np.integer) or not 1 <= steps <= most:
        raise UsageError("num_inference_steps", got=short(steps), expected=f"1 to {most}")
    if spec.kind == "edm":
        return edm_schedule(spec, steps)
    return _flow(spec, levels, steps, tokens) if spec.kind == "flow" else _vp(spec, levels, steps)


# variance preserving: a level is the ratio sigma/alpha


def _vp(spec: ScheduleSpec, levels: LevelSpec, steps: int) -> Schedule:
    alpha_bar = alphas_cumprod(spec)
    training = np.sqrt((1 - alpha_bar) / alpha_bar)
    t = np.clip(_timesteps(spec, levels, steps), 0, len(training) - 1)
    ratio = np.interp(t, np.arange(len(training)), training)
    final = {"zero": 0.0, "sigma_min": training[0]}.get(spec.final)
    if levels.spread == "log_linear":  # N + 1 levels over all of training; the last is the end
        ratio = np.geomspace(training[-1], training[0], steps + 1)
        final, ratio = float(ratio[-1]), ratio[:-1]
    elif levels.spread != "none":
        ratio = _spread(levels, ratio, training, steps)
        t = _timestep_of(ratio, training)
    ratio = np.append(ratio, ratio[-1] if final is None else final)
    t = _rounded(levels, t, ratio[:-1])
    clock = Clock("vp", training)
    schedule = _from_ratio(np.append(t, 0.0), ratio, clock)
    unit = levels.start == "unit" or spec.spacing == "leading"
    return dataclasses.replace(
        schedule,
        start=1.0 if unit else float(schedule.sigma.max()),
        ends=_strides(spec, schedule, steps) if levels.stride else None,
    )


def _timesteps(spec: ScheduleSpec, levels: LevelSpec, steps: int) -> Float64:
    """Returns N falling training timesteps, as the grid and the spacing say."""
    count = spec.num_train_timesteps
    if levels.grid == "distilled":
        return distilled_timesteps(steps, count, min(count, levels.original_steps))
    if spec.spacing == "trailing":
        trailing: Float64 = np.arange(count, 0, -count / steps)[:steps].round() - 1
        return trailing
    points = steps + (levels.grid == "intervals")
    falling: Float64
    if spec.spacing == "leading":
        stride = count // points
        falling = np.arange(points, dtype=np.float64)[::-1] * stride + spec.steps_offset
    else:
        falling = np.linspace(0, count - 1, points, dtype=np.float64)[::-1]
        falling = falling if levels.start == "sigma" else falling.round()
    return falling[:steps]


def _spread(levels: LevelSpec, chosen: Float64, training: Float64, steps: int) -> Float64:
    """Returns N levels on the named curve, between the first and the last of `span`."""
    whole = levels.span == "training"
    first, last = (training[-1], training[0]) if whole else (chosen[0], chosen[-1])
    first = first if levels.sigma_max is None else levels.sigma_max
    last = last if levels.sigma_min is None else levels.sigma_min
    return spaced_levels(levels.spread, float(first), float(last), steps, training)


def _timestep_of(ratio: Float64, training: Float64) -> Float64:
    """Returns the timestep of each level, linear in its logarithm between training timesteps."""
    log, logs = np.log(np.maximum(ratio, 1e-10)), np.log(training)
    low = np.clip(np.searchsorted(logs, log, side="right") - 1, 0, len(logs) - 2)
    share = np.clip((logs[low] - log) / (logs[low] - logs[low + 1]), 0, 1)
    t: Float64 = (1 - share) * low + share * (low + 1)
    return t


def _rounded(levels: LevelSpec, t: Float64, ratio: Float64) -> Float64:
    """Returns the network's timesteps."""
    if levels.timesteps == "log":
        quarter: Float64 = 0.25 * np.log(ratio)
        return quarter
    if levels.timesteps == "nearest":
        return t.round()
    return np.floor(t) if levels.timesteps == "down" else t


def _strides(spec: ScheduleSpec, schedule: Schedule, steps: int) -> Float64:
    """Returns the point at t − T//N for each step, (N, 3); the final one for t − T//N below 0."""
    ends = [
        schedule[steps] if t < 0 else schedule.clock.at_t(float(t))
        for t in schedule.t[:-1] - spec.num_train_timesteps // steps
    ]
    return np.array(ends)


def _from_ratio(t: Float64, ratio: Float64, clock: Clock) -> Schedule:
    alpha = 1 / np.sqrt(1 + ratio**2)
    return Schedule(t=t, alpha=alpha, sigma=ratio * alpha, clock=clock)


# flow: a level is sigma


def _flow(spec: ScheduleSpec, levels: LevelSpec, steps: int, tokens: int) -> Schedule:
    count, shift = spec.num_train_timesteps, flow_shift(spec, tokens)
    whole = flow_schedule(spec, steps, tokens)
    if levels.grid == "points":
        sigma = whole.sigma[:-1]
    else:
        high, low = (1 - 1 / count, 0.0) if levels.grid == "intervals" else (1.0, 1 / count)
        sigma = shift_sigma(np.linspace(high, low, steps + 1)[:-1], shift)
        sigma = stretched(sigma, spec.shift_terminal)
        if levels.grid == "open" and 1 - sigma[0] < BELOW_ONE:
            sigma[0] -= BELOW_ONE
    if levels.spread != "none":
        sigma = _spread(levels, sigma, whole.clock.training, steps)
    last = sigma[-1] if spec.final == "last" else 0.0
    sigma = np.append(sigma, last)
    t = np.append(_rounded(levels, sigma[:-1] * count, sigma[:-1]), last * count)
    return Schedule(t=t, alpha=1 - sigma, sigma=sigma, clock=whole.clock, start=1.0)
