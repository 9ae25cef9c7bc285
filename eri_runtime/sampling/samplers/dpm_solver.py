"""DPM-Solver and DPM-Solver++ of orders 1 to 3, multistep and single-step, as diffusers has them.

Lu et al. 2022 (arXiv 2206.00927, 2211.01095). With h = lambda' − lambda and a step from `here`,

    data   x' = (sigma'/sigma)·x + alpha'·(w_0·D + w_1·d_1 + w_2·d_2), w_0 = 1 − e^−h
    noise  x' = (alpha'/alpha)·x − sigma'·(w_0·e + w_1·d_1 + w_2·d_2), w_0 = e^h − 1

where D is the denoised x_0, e = (x − alpha·D)/sigma, and d_1, d_2 are differences of D or e.
"""

from __future__ import annotations

from itertools import pairwise
from math import exp, expm1, sqrt
from typing import Any, NamedTuple

from eri_runtime.sampling.samplers.steps import (
    Denoise,
    Noise,
    ancestral_step,
    is_finite_step,
    is_repeated,
    log_snr,
)
from eri_runtime.sampling.schedule import Point, Schedule

FEW_STEPS = 15  # diffusers lowers the order at the end of runs that are shorter


class Method(NamedTuple):
    """Which of the formulas.

    Attributes:
        noise: Whether it predicts the noise (DPM-Solver) instead of the data (DPM-Solver++).
        sde: Whether it adds noise (the SDE variants).
        heun: Whether the second differences are weighted as by `heun` instead of `midpoint`.
    """

    noise: bool
    sde: bool
    heun: bool


class Term(NamedTuple):
    """A prediction, D or e, and the point of its evaluation."""

    value: Any
    at: Point


def dpm_multistep(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    order: float = 2,
    sde: float = 0,
    heun: float = 0,
    lower_order_final: float = 1,
    euler_at_final: float = 0,
    noise_prediction: float = 0,
) -> Any:
    """DPM-Solver++(1M, 2M, 3M) and DPM-Solver (arXiv 2211.01095, alg. 2).

    The order is 1 at the first step, at most 2 at the second, and 1 at a last step to noise level
    0. With `lower_order_final` a run of less than 15 steps ends with the orders 2 and 1.
    """
    method = Method(bool(noise_prediction), bool(sde), bool(heun))
    few = bool(lower_order_final) and (schedule.total or len(schedule)) < FEW_STEPS
    past: list[Term] = []  # newest first
    for i, (here, there) in enumerate(schedule.steps()):
        left = len(schedule) - i
        denoised = denoise(x, here)
        past = [_term(method, x, denoised, here), *past][: int(order)]
        if not is_finite_step(here, there):
            x = _first_order(method, noise, x, denoised, here, there)
            past = past[is_repeated(here, there) :] if here.alpha > 0 else []
            continue
        this_order = len(past)
        if few and left <= 2:
            this_order = min(this_order, left)
        if left == 1 and (euler_at_final or there.sigma == 0):
            this_order = 1
        x = _step(method, x, past[:this_order], there, single=False)
        x = _with_noise(method, noise, x, here, there)
    return x


def dpm_singlestep(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    order: float = 2,
    sde: float = 0,
    heun: float = 0,
    lower_order_final: float = 1,
    noise_prediction: float = 0,
) -> Any:
    """DPM-Solver++(2S, 3S) and DPM-Solver on the schedule's own points (arXiv 2206.00927).

    Steps come in blocks of `order`; the k-th of a block starts anew where the block began, with
    order k. N steps are N evaluations.
    """
    method = Method(bool(noise_prediction), bool(sde), bool(heun))
    total = schedule.total or len(schedule)
    to_zero = schedule[len(schedule)].sigma == 0
    orders = _orders(total, int(order), lower=bool(lower_order_final), to_zero=to_zero)
    past: list[Term] = []  # newest first
    begin = x
    steps = zip(orders[-len(schedule) :], schedule.steps(), strict=True)
    for planned, (here, there) in steps:
        denoised = denoise(x, here)
        past = [_term(method, x, denoised, here), *past][: int(order)]
        this_order = min(planned, len(past))
        if this_order == 1:
            begin = x
        block = past[:this_order]
        if not is_finite_step(block[-1].at, there):
            x = _first_order(method, noise, x, denoised, here, there)
            past = past if here.alpha > 0 and not is_repeated(here, there) else []
            continue
        x = _step(method, begin, block, there, single=True)
        x = _with_noise(method, noise, x, block[-1].at, there)
        past = past[is_repeated(here, there) :]
    return x


def _orders(steps: int, order: int, *, lower: bool, to_zero: bool) -> list[int]:
    """Returns the order of each step: 1, 2, … in blocks, and lower ones at the end.

    As in diffusers, a number of steps that `order` does not divide, and a last step to noise level
    0, lower the last orders too.
    """
    whole, rest = divmod(steps, order)
    block = list(range(1, order + 1))
    if not (lower or rest or to_zero):
        return block * whole
    if order == 1:
        return [1] * steps
    orders = block * whole + block[:rest] if rest else block * (whole - 1) + [*block[:-1], 1]
    return [*orders[:-1], 1] if to_zero else orders


def _term(method: Method, x: Any, denoised: Any, here: Point) -> Term:
    """Returns what is remembered of an evaluation: D, or e = (x − alpha·D)/sigma."""
    return Term((x - here.alpha * denoised) / here.sigma if method.noise else denoised, here)


def _first_order(
    method: Method, noise: Noise, x: Any, denoised: Any, here: Point, there: Point
) -> Any:
    """Returns x' of a step from pure noise or to the image, where h is infinite."""
    return ancestral_step(x, denoised, here, there, float(method.sde), lambda up: up * noise())


def _step(method: Method, x: Any, terms: list[Term], there: Point, *, single: bool) -> Any:
    """Returns x' without the noise, of the order len(terms); `terms` are newest first.

    It leads from the oldest point if `single`, else from the newest.
    """
    origin = terms[-1] if single else terms[0]
    h = log_snr(there) - log_snr(origin.at)
    base, first, second = _weights(method, h)
    if len(terms) == 2 and not method.heun:
        first = base / 2
    unit = -there.sigma if method.noise else there.alpha
    x = _keep(method, origin.at, there, h) * x + unit * base * origin.value
    differences = _single_differences if single else _multi_differences
    for weight, difference in zip((first, second), differences(method, terms, h), strict=False):
        x = x + unit * weight * difference
    return x


def _keep(method: Method, here: Point, there: Point, h: float) -> float:
    """Returns the factor of x in x'."""
    if method.noise:
        return there.alpha / here.alpha
    return there.sigma / here.sigma * (exp(-h) if method.sde else 1.0)


def _weights(method: Method, h: float) -> tuple[float, float, float]:
    """Returns the weights of the prediction and of its first and second differences.

    The last of them has diffusers' sign of 1/2 for the SDE.
    """
    if method.noise:
        twice = 2 if method.sde else 1
        grown = expm1(h)
        return twice * grown, twice * (grown / h - 1), (grown - h) / h**2 - 0.5
    H = 2 * h if method.sde else h
    left = expm1(-H)
    return -left, left / H + 1, -(left + H) / H**2 + (-0.5 if method.sde else 0.5)


def _multi_differences(method: Method, terms: list[Term], h: float) -> list[Any]:
    """Returns the differences of predictions at earlier steps, in units of h."""
    del method
    pairs = list(pairwise(terms))
    gaps = [(log_snr(new.at) - log_snr(old.at)) / h for new, old in pairs]
    slopes = [(new.value - old.value) / gap for (new, old), gap in zip(pairs, gaps, strict=True)]
    if len(slopes) < 2:
        return slopes
    bend = (slopes[0] - slopes[1]) / (gaps[0] + gaps[1])
    return [slopes[0] + gaps[0] * bend, bend]


def _single_differences(method: Method, terms: list[Term], h: float) -> list[Any]:
    """Returns the differences of a block's predictions from its first one, in units of h."""
    start = terms[-1]
    ratios = [(log_snr(term.at) - log_snr(start.at)) / h for term in terms[:-1]]
    slopes = [(term.value - start.value) / r for term, r in zip(terms[:-1], ratios, strict=True)]
    if len(slopes) < 2 or not method.heun:
        return slopes[:1]
    (late, early), (far, near) = slopes, ratios
    return [(far * early - near * late) / (far - near), 2 * (late - early) / (far - near)]


def _with_noise(method: Method, noise: Noise, x: Any, here: Point, there: Point) -> Any:
    """Adds the noise of an SDE to x'."""
    if not method.sde:
        return x
    h = log_snr(there) - log_snr(here)
    grown = expm1(2 * h) if method.noise else -expm1(-2 * h)
    return x + there.sigma * sqrt(grown) * noise()
