"""DEIS, a multistep method on the noise e = (x − alpha·D)/sigma."""

from __future__ import annotations

from functools import cache
from math import log
from typing import Any

import numpy as np

from eri_runtime.sampling.samplers.steps import Denoise, Noise, ddim_step, is_finite_step
from eri_runtime.sampling.schedule import Schedule
from eri_runtime.sampling.sigmas import Float64

NEGLIGIBLE = 44.0
FEW_STEPS = 15  # diffusers lowers the order at the end of runs that are shorter


def deis(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    order: float = 2,
    lower_order_final: float = 1,
) -> Any:
    """DEIS of log-rho (Zhang & Chen 2023, arXiv 2204.13902, eq. 15), rho = sigma/alpha.

    x' = alpha'·(x/alpha + Σ_j e_j·∫ l_j(log rho) d rho), l_j Lagrange's basis on earlier log rho
    """
    del noise
    few = bool(lower_order_final) and (schedule.total or len(schedule)) < FEW_STEPS
    past: list[tuple[Any, float]] = []  # e and log rho, newest first
    for i, (here, there) in enumerate(schedule.steps()):
        left = len(schedule) - i
        denoised = denoise(x, here)
        if not is_finite_step(here, there):  # first order
            x, past = ddim_step(x, denoised, here, there), []
            continue
        eps = (x - here.alpha * denoised) / here.sigma
        past = [(eps, log(here.sigma / here.alpha)), *past][: int(order)]
        used = past[: min(len(past), left)] if few and left <= 2 else past
        levels = [at for _, at in used]
        weights = exponential_weights(levels, levels[0], log(there.sigma / there.alpha))
        x = there.alpha / here.alpha * x
        for weight, (eps, _) in zip(weights, used, strict=True):
            x = x + there.alpha * weight * eps
    return x


def exponential_weights(at: list[float], start: float, end: float) -> list[float]:
    """Returns ∫ l_j(u)·e^u du from `start` to `end` for each j, l_j Lagrange's basis on `at`.

    By Gauss–Legendre, exact to rounding: what lies below e^−44 of the largest e^u is left out.
    """
    low, high = sorted((start, end))
    half = (high - max(low, high - NEGLIGIBLE)) / 2
    nodes, weights = _gauss_legendre()
    u = high + half * (nodes - 1)
    factors = np.copysign(half, end - start) * weights * np.exp(u)
    integrals = []
    for j, own in enumerate(at):
        basis = np.ones_like(u)
        for other in at[:j] + at[j + 1 :]:
            basis *= (u - other) / (own - other)
        integrals.append(float(factors @ basis))
    return integrals


@cache
def _gauss_legendre() -> tuple[Float64, Float64]:
    """Returns nodes and weights on [−1, 1]: for e^u over 44 they err by 1e-20."""
    return np.polynomial.legendre.leggauss(32)
