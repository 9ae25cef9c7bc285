"""Noise schedules: N + 1 points (t, alpha, sigma) at which x_t = alpha·x_0 + sigma·noise.

`vp` has alpha² + sigma² = 1 (Ho et al. 2020, arXiv 2006.11239), `flow` alpha + sigma = 1 (Liu et
al. 2022, arXiv 2209.03003). Everything is float64 and made once per call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eri_runtime.errors import UsageError, short
from eri_runtime.sigmas import LARGEST, SigmaName, listed_levels, spaced_levels
from eri_runtime.spec import BetaCurve, ScheduleKind, ScheduleSpec, Spacing

Float64 = NDArray[np.float64]


class Point(NamedTuple):
    """One moment of the schedule: the training clock `t`, and x_t = alpha·x_0 + sigma·noise."""

    t: float
    alpha: float
    sigma: float


@dataclass(frozen=True)
class Clock:
    """The process a schedule's points were taken from, for the points between them.

    A solver works on y = x/scale over a time tau = sigma/scale: sigma/alpha for `vp` (Karras et
    al. 2022, arXiv 2206.00364), sigma itself for `flow`; dy/dtau = (x − scale·D)/sigma in both.
    `training` holds the tau of each training step, (T,) ascending.
    """

    kind: ScheduleKind
    training: Float64

    def scale(self, point: Point) -> float:
        """x/y: alpha, or alpha + sigma, which is 1 for `flow`."""
        return point.alpha if self.kind == "vp" else 1.0

    def tau(self, point: Point) -> float:
        """The solver's time, falling to 0."""
        return point.sigma / self.scale(point)

    def at(self, tau: float) -> Point:
        """The point at `tau`; log tau is linear in t between two training steps of `vp`."""
        if self.kind == "flow":
            return Point(tau * len(self.training), 1 - tau, tau)
        alpha = 1 / sqrt(1 + tau**2)
        if tau == 0:
            return Point(0.0, 1.0, 0.0)
        t = np.interp(log(tau), np.log(self.training), np.arange(len(self.training)))
        return Point(float(t), alpha, tau * alpha)

    def at_t(self, t: float) -> Point:
        """The point at training step `t`; tau is linear in t between two of `vp`."""
        if self.kind == "flow":
            return self.at(t / len(self.training))
        tau = float(np.interp(t, np.arange(len(self.training)), self.training))
        return self.at(tau)._replace(t=t)


@dataclass(frozen=True)
class Schedule:
    """`t`, `alpha` and `sigma`, each (N + 1,) float64, from noise to image."""

    t: Float64
    alpha: Float64
    sigma: Float64
    clock: Clock

    def __len__(self) -> int:
        """The number of steps, one less than of points."""
        return len(self.t) - 1

    def __getitem__(self, i: int) -> Point:
        return Point(float(self.t[i]), float(self.alpha[i]), float(self.sigma[i]))

    def part(self, start: int, steps: int) -> Schedule:
        """So many steps from point `start` on, and the point that follows them."""
        ends = slice(start, start + steps + 1)
        return Schedule(self.t[ends], self.alpha[ends], self.sigma[ends], self.clock)

    def steps(self) -> Iterator[tuple[Point, Point]]:
        """Each step's two ends, the noisier first."""
        for i in range(len(self)):
            yield self[i], self[i + 1]


def make_schedule(
    spec: ScheduleSpec,
    steps: int,
    tokens: int,
    *,
    whole_t: bool,
    original_steps: int | None = None,
    sigmas: SigmaName | Sequence[float] = "default",
) -> Schedule:
    """N = `steps` points of the checkpoint's schedule and the one that follows them.

    `tokens` is the number of denoiser tokens of the image, for a resolution-dependent shift.
    `whole_t` rounds a `vp` clock to integers, as DDIM's definition on the training steps does.
    `original_steps` are those a distilled `vp` model was taught, of which N are taken. `sigmas`
    respaces the N points: a name of `sigmas.SPACINGS`, or N levels of `Clock.tau`.
    Raises `UsageError` for a number of steps outside 1 … num_train_timesteps (or the original
    steps), and for unusable `sigmas`.
    """
    most = spec.num_train_timesteps
    if original_steps is not None and spec.kind == "vp":
        most = original_steps = min(most, original_steps)
    if not isinstance(steps, int | np.integer) or not 1 <= steps <= most:
        raise UsageError("num_inference_steps", got=short(steps), expected=f"1 to {most}")
    if spec.kind == "flow":
        schedule = flow_schedule(spec, steps, tokens)
    else:
        schedule = vp_schedule(spec, steps, whole_t=whole_t, original_steps=original_steps)
    if isinstance(sigmas, str) and sigmas == "default":
        return schedule
    return respace(schedule, sigmas, whole_t=whole_t)


def respace(schedule: Schedule, sigmas: SigmaName | Sequence[float], *, whole_t: bool) -> Schedule:
    """The same range of noise and the same end, with other levels between."""
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
    return Schedule(t, alpha, sigma, clock)


# flow


def flow_schedule(spec: ScheduleSpec, steps: int, tokens: int) -> Schedule:
    """sigma from 1 down, shifted, then 0; t = sigma·num_train_timesteps, alpha = 1 − sigma."""
    shift = flow_shift(spec, tokens)
    if spec.spacing == "trailing":
        last = 1 / steps
    else:  # SD3's training clock has been shifted once already when its last point is taken
        first_shift = 1.0 if spec.dynamic_shift else shift
        last = float(shift_sigma(1 / spec.num_train_timesteps, first_shift))
    sigma = np.append(shift_sigma(np.linspace(1.0, last, steps), shift), 0.0)
    count = spec.num_train_timesteps
    clock = Clock("flow", shift_sigma(np.arange(1, count + 1) / count, shift))
    return Schedule(t=sigma * count, alpha=1 - sigma, sigma=sigma, clock=clock)


def flow_shift(spec: ScheduleSpec, tokens: int) -> float:
    """The constant shift, or exp(mu) with mu linear in the number of tokens (BFL's Flux)."""
    if not spec.dynamic_shift:
        return spec.shift
    slope = (spec.max_shift - spec.base_shift) / (spec.max_tokens - spec.base_tokens)
    return float(np.exp(spec.base_shift + slope * (tokens - spec.base_tokens)))


def shift_sigma(sigma: ArrayLike, shift: float) -> Float64:
    """sigma' = s·sigma / (1 + (s − 1)·sigma) (Esser et al. 2024, arXiv 2403.03206, eq. 23)."""
    s = np.asarray(sigma, dtype=np.float64)
    return shift * s / (1 + (shift - 1) * s)


# variance preserving


def vp_schedule(
    spec: ScheduleSpec, steps: int, *, whole_t: bool, original_steps: int | None = None
) -> Schedule:
    """N points of the DDPM schedule; between training steps sigma/alpha is linear in t."""
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
    """N of the `original` evenly spaced training steps a consistency model was taught.

    Luo et al. 2023 (arXiv 2310.04378), section 4.3: the last step of each of `original` blocks.
    """
    taught = np.arange(original, 0, -1) * (count // original) - 1.0
    return taught[np.floor(np.arange(steps) * (original / steps)).astype(int)]


def alphas_cumprod(spec: ScheduleSpec) -> Float64:
    """alpha-bar_t = Π (1 − beta_s), (num_train_timesteps,) (Ho et al. 2020, eq. 4)."""
    betas = make_betas(spec.beta_curve, spec.num_train_timesteps, spec.beta_start, spec.beta_end)
    alpha_bar = np.cumprod(1 - betas, dtype=np.float64)
    return zero_terminal_snr(alpha_bar) if spec.zero_terminal_snr else alpha_bar


def make_betas(curve: BetaCurve, count: int, start: float, end: float) -> Float64:
    """beta_t for t < count: linear, linear in sqrt(beta), or Nichol & Dhariwal's cosine."""
    if curve == "linear":
        return np.linspace(start, end, count)
    if curve == "scaled_linear":
        return np.square(np.linspace(start**0.5, end**0.5, count))
    # arXiv 2102.09672, eq. 17: alpha-bar(t) = cos²((t + 0.008) / 1.008 · π/2), beta capped
    edge = np.arange(count + 1) / count
    alpha_bar = np.cos((edge + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def zero_terminal_snr(alpha_bar: Float64) -> Float64:
    """Shift and scale sqrt(alpha-bar) so that its last value is 0 (Lin et al. 2023, alg. 1).

    The last value is then set to 2⁻²⁴, as diffusers does, so that sigma/alpha stays finite.
    """
    root = np.sqrt(alpha_bar)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return np.append(root[:-1] ** 2, 2.0**-24)


def spaced_timesteps(spacing: Spacing, steps: int, count: int, offset: int) -> Float64:
    """N of the `count` training steps, descending (Lin et al. 2023, table 2)."""
    if spacing == "linspace":
        return np.linspace(count - 1, 0, steps)
    if spacing == "leading":
        return np.arange(steps, dtype=np.float64)[::-1] * (count // steps) + offset
    return np.rint(np.arange(steps, 0, -1) * (count / steps)) - 1
