"""SA-Solver: a stochastic Adams method, with a corrector that costs no evaluation."""

from __future__ import annotations

from math import exp, sqrt
from typing import Any, NamedTuple

from eri_runtime.sampling.samplers.deis import exponential_weights
from eri_runtime.sampling.samplers.steps import (
    Denoise,
    Noise,
    ddim_step,
    is_finite_step,
    is_repeated,
    log_snr,
)
from eri_runtime.sampling.schedule import Point, Schedule


class _Begun(NamedTuple):
    """A step as the corrector repeats it."""

    x: Any
    noise: Any
    tau: float
    past: list[tuple[Any, Point]]
    order: int


def sa_solver(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    order: float = 2,
    corrector_order: float = 2,
    tau: float = 1.0,
    tau_from: float = 200,
    tau_to: float = 800,
    lower_order_final: float = 1,
    noise_prediction: float = 0,
) -> Any:
    """SA-Solver (Xue et al. 2023, arXiv 2309.05019, alg. 1), in x_0 or in the noise e.

    With l = lambda, h = l' − l, l_j Lagrange's basis on earlier l and c = 1 + tau²,

    x' = e^(−tau²·h)·(sigma'/sigma)·x + c·alpha'·Σ_j D_j·∫ e^(c·(u − l'))·l_j(u) du
         + sigma'·sqrt(1 − e^(−2·tau²·h))·n                                              (eq. 14)

    and in the noise x' = (alpha'/alpha)·x − c·sigma'·Σ_j e_j·∫ e^(l' − u)·l_j(u) du
    + tau·sigma'·sqrt(e^(2h) − 1)·n. The corrector repeats the step with the new prediction among
    the earlier ones. tau is 0 at timesteps outside `tau_from` to `tau_to`; every step draws noise.
    """
    in_noise = bool(noise_prediction)
    past: list[tuple[Any, Point]] = []  # predictions and their points, newest first
    begun: _Begun | None = None
    for k, (here, there) in enumerate(schedule.steps()):
        denoised = denoise(x, here)
        new = (x - here.alpha * denoised) / here.sigma if in_noise else denoised
        if begun is not None:
            used = [(new, here), *begun.past][: begun.order]
            x = _step(begun, used, begun.past[0][1], here, in_noise=in_noise)
        own_tau = tau if tau_from <= here.t <= tau_to else 0.0
        n, past = noise(), [(new, here), *past][:4]
        if not is_finite_step(here, there):  # first order, not corrected
            x, begun = _limit(x, denoised, here, there, n, own_tau), None
            past = past[is_repeated(here, there) :] if here.alpha > 0 else []
            continue
        left = len(schedule) - k if lower_order_final else 4
        begun = _Begun(x, n, own_tau, past, min(int(corrector_order), left + 1, len(past) + 1))
        used = past[: min(int(order), left)]
        x = _step(begun, used, here, there, in_noise=in_noise)
    return x


def _limit(x: Any, denoised: Any, here: Point, there: Point, n: Any, tau: float) -> Any:
    """Returns x' of a step from pure noise, to the image, or to the same level."""
    if tau == 0 or is_repeated(here, there):
        return ddim_step(x, denoised, here, there) + 0.0 * n
    return there.alpha * denoised + there.sigma * n


def _step(
    begun: _Begun, used: list[tuple[Any, Point]], here: Point, there: Point, *, in_noise: bool
) -> Any:
    """Returns x at `there`, with Lagrange's polynomial through the predictions in `used`."""
    tau, end = begun.tau, log_snr(there)
    c, h = 1 + tau**2, end - log_snr(here)
    slope = -1.0 if in_noise else c  # the integrals are over slope·(l − l')
    at = [slope * (log_snr(point) - end) for _, point in used]
    weights = exponential_weights(at, -slope * h, 0.0)
    if in_noise:
        unit, keep = c * there.sigma, there.alpha / here.alpha
        up = tau * there.sigma * sqrt(max(0.0, exp(2 * h) - 1))
    else:
        unit, keep = there.alpha, exp(-(tau**2) * h) * there.sigma / here.sigma
        up = there.sigma * sqrt(max(0.0, 1 - exp(-2 * tau**2 * h)))
        if len(used) == 2:
            weights = _second_order(weights, c, h, log_snr(used[0][1]) - log_snr(used[1][1]))
    x = keep * begun.x + up * begun.noise
    for weight, (prediction, _) in zip(weights, used, strict=True):
        x = x + unit * weight * prediction
    return x


def _second_order(weights: list[float], c: float, h: float, apart: float) -> list[float]:
    """Returns the two weights with the authors' term of order h³ for few steps.

    Over the distance `apart` of the two points: the last step's, or the corrector's own h.
    """
    more = c * (h**2 / 2 - (c * h - 1 + exp(-c * h)) / c**2) / apart
    return [weights[0] + more, weights[1] - more]
