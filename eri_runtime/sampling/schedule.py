"""Noise schedules: N + 1 points (t, alpha, sigma) with x_t = alpha·x_0 + sigma·noise.

`vp` (variance preserving) has alpha² + sigma² = 1 (Ho et al. 2020, arXiv 2006.11239), `flow`
(rectified flow) has alpha + sigma = 1 (Liu et al. 2022, arXiv 2209.03003), `edm` has alpha = 1
(Karras et al. 2022, arXiv 2206.00364). All arrays are float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from eri_runtime.bundle import ScheduleKind, ScheduleSpec, Spacing
from eri_runtime.checks import boolean, instance, integer
from eri_runtime.errors import UsageError, short
from eri_runtime.sampling.betas import alphas_cumprod
from eri_runtime.sampling.sigmas import (
    LARGEST,
    Float64,
    SigmaName,
    karras,
    listed_levels,
    spaced_levels,
)


class Point(NamedTuple):
    """A point of a schedule, where x_t = alpha·x_0 + sigma·noise.

    Attributes:
        t: Training timestep, the denoiser's `timestep` input; not always a whole number.
        alpha: Factor of the image x_0.
        sigma: Factor of the noise.
    """

    t: float
    alpha: float
    sigma: float


@dataclass(frozen=True)
class Clock:
    """The continuous noise process of a schedule, for points between the schedule's own.

    ODE solvers work on y = x/scale over the noise level tau = sigma/scale. tau is sigma/alpha for
    `vp` (Karras et al. 2022, arXiv 2206.00364) and sigma for `flow` and `edm`. All follow the ODE
    dy/dtau = (x − scale·D)/sigma.

    Attributes:
        kind: `vp`, `flow` or `edm`.
        training: tau of each training timestep, (num_train_timesteps,) float64, rising.
        sigma_data: Standard deviation of the data of `edm`.
    """

    kind: ScheduleKind
    training: Float64
    sigma_data: float = 0.5

    def scale(self, point: Point) -> float:
        """Returns scale = x/y: alpha for `vp`, 1 for `flow` and `edm`."""
        return point.alpha if self.kind == "vp" else 1.0

    def tau(self, point: Point) -> float:
        """Returns the noise level sigma/scale of a point."""
        return point.sigma / self.scale(point)

    def at(self, tau: float) -> Point:
        """Returns the point at noise level `tau`.

        For `vp`, t is interpolated between training timesteps, linear in log tau. For `edm`, t is
        ln(tau)/4, the network's c_noise.
        """
        if self.kind == "flow":
            return Point(tau * len(self.training), 1 - tau, tau)
        if self.kind == "edm":
            return Point(log(tau) / 4 if tau > 0 else 0.0, 1.0, tau)
        alpha = 1 / sqrt(1 + tau**2)
        if tau == 0:
            return Point(0.0, 1.0, 0.0)
        t = np.interp(log(tau), np.log(self.training), np.arange(len(self.training)))
        return Point(float(t), alpha, tau * alpha)

    def at_t(self, t: float) -> Point:
        """Returns the point at training timestep `t`.

        For `vp`, tau is interpolated between training timesteps, linear in t.
        """
        if self.kind == "flow":
            return self.at(t / len(self.training))
        tau = float(np.interp(t, np.arange(len(self.training)), self.training))
        return self.at(tau)._replace(t=t)


@dataclass(frozen=True)
class Schedule:
    """The N + 1 points of N denoising steps, from noise to image.

    `schedule[i]` is a `Point`, `len(schedule)` is N.

    Attributes:
        t: Training timesteps, (N + 1,) float64.
        alpha: Factors of the image, (N + 1,) float64.
        sigma: Factors of the noise, (N + 1,) float64.
        clock: The noise process that the points are taken from.
        start: Factor of the initial noise. None: as the sampler begins.
        ends: The points to which the steps lead, (N, 3) float64, where they are not the next
            points. None: the next points.
        total: Number of steps of the schedule that this is a slice of. None: it is whole.

    Example:
        >>> schedule = eri.make_schedule(pipe.bundle.schedule, 4, tokens=64, whole_t=False)
        >>> len(schedule), len(schedule.sigma)
        (4, 5)
        >>> schedule[0]
        Point(t=1000.0, alpha=0.0, sigma=1.0)
    """

    t: Float64
    alpha: Float64
    sigma: Float64
    clock: Clock
    start: float | None = None
    ends: Float64 | None = None
    total: int | None = None

    def __len__(self) -> int:
        """Returns the number of steps N, one less than the number of points."""
        return len(self.t) - 1

    def __getitem__(self, i: int) -> Point:
        """Returns point `i`, from 0 (the noisiest) to N."""
        return self._points[i]

    @cached_property
    def _points(self) -> list[Point]:
        """All points, as every step of a loop reads its own several times."""
        columns = (self.t, self.alpha, self.sigma)
        return [Point(*each) for each in np.stack(columns, axis=1).tolist()]

    def part(self, start: int, steps: int) -> Schedule:
        """Returns a slice of the schedule.

        Args:
            start: Index of its first point.
            steps: Number of its steps.

        Returns:
            The points `start` to `start + steps`.
        """
        points = slice(start, start + steps + 1)
        return Schedule(
            self.t[points],
            self.alpha[points],
            self.sigma[points],
            self.clock,
            start=self.start if start == 0 else None,
            ends=None if self.ends is None else self.ends[start : start + steps],
            total=self.total or len(self),
        )

    def steps(self) -> Iterator[tuple[Point, Point]]:
        """Iterates over the steps.

        Yields:
            The start and the end point of each step; the start is noisier.
        """
        for i in range(len(self)):
            yield self[i], self[i + 1] if self.ends is None else Point(*self.ends[i].tolist())


def make_schedule(
    spec: ScheduleSpec,
    steps: int,
    tokens: int,
    *,
    whole_t: bool,
    original_steps: int | None = None,
    sigmas: SigmaName | Sequence[float] = "default",
) -> Schedule:
    """Chooses the noise levels of a denoising loop from a checkpoint's training schedule.

    `Sampler.schedule` calls this with the sampler's own `whole_t` and `original_steps`.

    Args:
        spec: The training schedule, for example `pipe.bundle.schedule`.
        steps: Number of denoising steps N.
        tokens: Number of the denoiser's image tokens, for a resolution-dependent shift (Flux).
        whole_t: Whether the timesteps of `vp` are rounded to integers, as in DDIM.
        original_steps: Number of timesteps on which a distilled `vp` model (LCM, TCD) was trained;
            N of them are chosen. Default: the model is not distilled.
        sigmas: Spacing of the noise levels: `default` (the checkpoint's), `karras`, `exponential`,
            `beta`, `simple`, or a sequence of N falling levels (sigma/alpha for `vp`, sigma for
            `flow`).

    Returns:
        The N points at which the network is evaluated, and the final point.

    Raises:
        UsageError: If `steps` is not from 1 to num_train_timesteps (or `original_steps`), or the
            levels in `sigmas` cannot be used.
        UnknownNameError: If `sigmas` is an unknown name.

    Example:
        >>> schedule = eri.make_schedule(pipe.bundle.schedule, 4, tokens=64, whole_t=False)
        >>> schedule.t.round(1)
        array([1000. ,  857.7,  602.2,    8.9,    0. ])
    """
    most = instance("spec", spec, ScheduleSpec).num_train_timesteps
    boolean("whole_t", whole_t)
    integer("tokens", tokens, 0)
    if original_steps is not None:
        integer("original_steps", original_steps, 1)
    if original_steps is not None and spec.kind == "vp":
        most = original_steps = min(most, original_steps)
    if not isinstance(steps, int | np.integer) or not 1 <= steps <= most:
        raise UsageError("num_inference_steps", got=short(steps), expected=f"1 to {most}")
    if spec.kind == "flow":
        schedule = flow_schedule(spec, steps, tokens)
    elif spec.kind == "edm":
        schedule = edm_schedule(spec, steps)
    else:
        schedule = vp_schedule(spec, steps, whole_t=whole_t, original_steps=original_steps)
    if isinstance(sigmas, str) and sigmas == "default":
        return schedule
    return respace(schedule, sigmas, whole_t=whole_t)


def respace(schedule: Schedule, sigmas: SigmaName | Sequence[float], *, whole_t: bool) -> Schedule:
    """Returns a schedule with as many steps and the same final point, but other noise levels.

    A named spacing keeps the first and the last level too. Raises `UsageError` for `sigmas` that
    cannot be used.
    """
    clock, count = schedule.clock, len(schedule)
    taus = [clock.tau(schedule[i]) for i in range(count + 1)]
    if isinstance(sigmas, str):
        levels = spaced_levels(sigmas, taus[0], taus[-2], count, clock.training)
    else:
        most = 1.0 if clock.kind == "flow" else LARGEST
        levels = listed_levels(sigmas, count, taus[-1], most)
    points = [clock.at(float(level)) for level in levels]
    if whole_t and clock.kind == "vp":
        points = [point._replace(t=float(round(point.t))) for point in points]
    t, alpha, sigma = np.array([*points, schedule[count]]).T
    return Schedule(t, alpha, sigma, clock, start=schedule.start)


# flow


def flow_schedule(spec: ScheduleSpec, steps: int, tokens: int) -> Schedule:
    """Returns N shifted levels from sigma = 1 down, then 0.

    alpha = 1 − sigma and t = num_train_timesteps·sigma.
    """
    shift = flow_shift(spec, tokens)
    if spec.spacing == "trailing":
        last = 1 / steps
    else:  # SD3 takes its last level from training timesteps that are already shifted once
        first_shift = 1.0 if spec.dynamic_shift else shift
        last = float(shift_sigma(1 / spec.num_train_timesteps, first_shift))
    sigma = shift_sigma(np.linspace(1.0, last, steps), shift)
    sigma = np.append(stretched(sigma, spec.shift_terminal), 0.0)
    count = spec.num_train_timesteps
    clock = Clock("flow", shift_sigma(np.arange(1, count + 1) / count, shift))
    return Schedule(t=sigma * count, alpha=1 - sigma, sigma=sigma, clock=clock)


def flow_shift(spec: ScheduleSpec, tokens: int) -> float:
    """Returns the constant shift, or exp(mu) or mu, linear in the number of tokens (Flux)."""
    if not spec.dynamic_shift:
        return spec.shift
    slope = (spec.max_shift - spec.base_shift) / (spec.max_tokens - spec.base_tokens)
    mu = spec.base_shift + slope * (tokens - spec.base_tokens)
    return mu if spec.shift_curve == "linear" else float(np.exp(mu))


def stretched(sigma: Float64, terminal: float | None) -> Float64:
    """Returns levels of which 1 − sigma is stretched, so that the last is `terminal`."""
    if terminal is None or sigma[-1] == 1:
        return sigma
    levels: Float64 = 1 - (1 - sigma) * ((1 - terminal) / (1 - sigma[-1]))
    return levels


def shifted_levels(spec: ScheduleSpec, sigmas: Sequence[float], tokens: int) -> list[float]:
    """Returns a caller's levels of a flow as its scheduler shifts them; a final 0 stays.

    Levels that are not between 0 and 1 stay as they are, for `make_schedule` to refuse.
    """
    numbers = (int, float, np.integer, np.floating)
    if not all(isinstance(each, numbers) and 0 <= each <= 1 for each in sigmas) or not sigmas:
        return list(sigmas)
    levels = [float(each) for each in sigmas]
    kept = np.array([level for level in levels if level > 0])
    if spec.shift_terminal is None or not len(kept):
        return [float(each) for each in shift_sigma(levels, flow_shift(spec, tokens))]
    shifted = stretched(shift_sigma(kept, flow_shift(spec, tokens)), spec.shift_terminal)
    return [*map(float, shifted), *[0.0] * (len(levels) - len(kept))]


def shift_sigma(sigma: ArrayLike, shift: float) -> Float64:
    """Returns sigma' = s·sigma / (1 + (s − 1)·sigma), for s = `shift`.

    Esser et al. 2024 (arXiv 2403.03206), eq. 23.
    """
    levels = np.asarray(sigma, dtype=np.float64)
    shifted: Float64 = shift * levels / (1 + (shift - 1) * levels)
    return shifted


# variance preserving


def vp_schedule(
    spec: ScheduleSpec, steps: int, *, whole_t: bool, original_steps: int | None = None
) -> Schedule:
    """Returns N points of the DDPM schedule; sigma/alpha is linear in t between timesteps."""
    alpha_bar = alphas_cumprod(spec)
    if original_steps is None:
        t = spaced_timesteps(spec.spacing, steps, spec.num_train_timesteps, spec.steps_offset)
    else:
        t = distilled_timesteps(steps, spec.num_train_timesteps, original_steps)
    t = np.clip(np.round(t) if whole_t else t, 0, spec.num_train_timesteps - 1)
    noise_to_signal = np.sqrt((1 - alpha_bar) / alpha_bar)
    ratio = np.interp(t, np.arange(spec.num_train_timesteps), noise_to_signal)
    last = 0.0 if spec.final == "zero" else noise_to_signal[0]
    ratio = np.append(ratio, last)
    alpha = 1 / np.sqrt(1 + ratio**2)
    clock = Clock("vp", noise_to_signal)
    return Schedule(t=np.append(t, 0.0), alpha=alpha, sigma=ratio * alpha, clock=clock)


def distilled_timesteps(steps: int, count: int, original: int) -> Float64:
    """Returns N of the timesteps on which a consistency model was distilled, falling.

    These are the last timesteps of each of `original` equal blocks of the `count` training
    timesteps (Luo et al. 2023, arXiv 2310.04378, section 4.3).
    """
    trained = np.arange(original, 0, -1) * (count // original) - 1.0
    chosen: Float64 = trained[np.floor(np.arange(steps) * (original / steps)).astype(int)]
    return chosen


def spaced_timesteps(spacing: Spacing, steps: int, count: int, offset: int) -> Float64:
    """Returns N of the `count` training timesteps, falling.

    Lin et al. 2023 (arXiv 2305.08891), table 2.
    """
    if spacing == "linspace":
        return np.linspace(0, count - 1, steps)[::-1]  # from t = 0 if it is one step, as diffusers
    if spacing == "leading":
        return np.arange(steps, dtype=np.float64)[::-1] * (count // steps) + offset
    trailing: Float64 = np.rint(np.arange(steps, 0, -1) * (count / steps)) - 1
    return trailing


# EDM


def edm_schedule(spec: ScheduleSpec, steps: int) -> Schedule:
    """Returns N levels from `sigma_max` to `sigma_min`; x = x_0 + sigma·noise, t = ln(sigma)/4.

    Karras et al. 2022 (arXiv 2206.00364), eq. 5. The initial noise has sqrt(sigma_max² + 1).
    """
    clock = Clock("edm", edm_levels(spec, spec.num_train_timesteps)[::-1], spec.sigma_data)
    sigma = edm_levels(spec, steps)
    points = [clock.at(float(level)) for level in sigma]
    last = 0.0 if spec.final == "zero" else spec.sigma_min
    t, alpha, sigma = np.array([*points, clock.at(last)]).T
    return Schedule(t, alpha, sigma, clock, start=float(np.hypot(spec.sigma_max, 1.0)))


def edm_levels(spec: ScheduleSpec, count: int) -> Float64:
    """Returns `count` falling levels, spaced as by `karras` or evenly in their logarithm."""
    if spec.spacing == "karras":
        return karras(spec.sigma_max, spec.sigma_min, count, np.empty(0), spec.rho)
    rising: Float64 = np.exp(np.linspace(log(spec.sigma_min), log(spec.sigma_max), count))
    return rising[::-1]
