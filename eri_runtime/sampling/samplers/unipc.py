"""UniPC: a multistep predictor with a corrector that costs no evaluation."""

from __future__ import annotations

from functools import partial
from math import expm1, factorial
from typing import Any

import numpy as np

from eri_runtime.sampling.samplers.steps import (
    Denoise,
    Noise,
    ddim_step,
    is_finite_step,
    is_repeated,
    log_snr,
)
from eri_runtime.sampling.schedule import Point, Schedule


def unipc(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    order: float = 2,
    bh: float = 2,
    correct_from: float = 0,
    lower_order_final: float = 1,
    noise_prediction: float = 0,
) -> Any:
    """UniPC with B_1(h) or B_2(h) (Zhao et al. 2023, arXiv 2302.04867, alg. 5 to 8).

    In x_0, with l = lambda, h = l' − l, r_i = (l_i − l)/h and B = −h or e^−h − 1,

    x' = ddim_step(x, D_0) − alpha'·B·Σ_i rho_i·(D_i − D_0)/r_i

    and in the noise e with h for −h, sigma' for alpha' and e for D. The corrector repeats the step
    with the new prediction among the earlier ones (r = 1), after step `correct_from`. With
    `lower_order_final` the order falls to 1 at the last step.
    """
    del noise
    step = partial(_step, bh=int(bh), noise=bool(noise_prediction))
    past: list[tuple[Any, Point]] = []  # predictions and their points, newest first
    to_correct: tuple[Any, int] | None = None  # x before the last step, and the step's order
    for k, (here, there) in enumerate(schedule.steps()):
        denoised = denoise(x, here)
        new = (x - here.alpha * denoised) / here.sigma if noise_prediction else denoised
        if to_correct is not None and k > correct_from:
            x_before, last_order = to_correct
            x = step(x_before, past[:last_order], here, new)
        past = [(new, here), *past][:3]
        if not is_finite_step(here, there):  # first order, not corrected
            x, to_correct = ddim_step(x, denoised, here, there), None
            past = past[is_repeated(here, there) :] if here.alpha > 0 else []
            continue
        this_order = min(int(order), len(past))
        if lower_order_final:
            this_order = min(this_order, len(schedule) - k)
        to_correct = (x, this_order)
        x = step(x, past[:this_order], there, None)
    return x


def _step(
    x: Any, past: list[tuple[Any, Point]], there: Point, new: Any, *, bh: int, noise: bool
) -> Any:
    """Returns x at `there`, from x at the point of `past[0]`.

    `new` is the prediction at `there` for the corrector, None for the predictor.
    """
    m0, here = past[0]
    h = log_snr(there) - log_snr(here)
    hh = h if noise else -h
    unit, keep = (there.sigma, there.alpha / here.alpha)
    if not noise:
        unit, keep = there.alpha, there.sigma / here.sigma
    x = keep * x - unit * expm1(hh) * m0
    ratios = [(log_snr(point) - log_snr(here)) / h for _, point in past[1:]]
    values = [m for m, _ in past[1:]]
    if new is not None:
        ratios, values = [*ratios, 1.0], [*values, new]
    B = hh if bh == 1 else expm1(hh)
    for rho, r, m in zip(_weights(ratios, hh, B), ratios, values, strict=True):
        x = x - unit * B * rho / r * (m - m0)
    return x


def _weights(ratios: list[float], hh: float, B: float) -> list[float]:
    """Solves R·rho = b, with R_ki = r_i^k, b_k = (k + 1)!·phi_(k+2)(hh)·hh/B.

    A single weight is 1/2.
    """
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    R = np.array([[r**k for r in ratios] for k in range(len(ratios))])
    phi, b = expm1(hh), []
    for k in range(1, len(ratios) + 1):
        phi = phi / hh - 1 / factorial(k)
        b.append(phi * factorial(k) / B)
    return [float(rho) for rho in np.linalg.solve(R, b)]
