"""One evaluation per step, and a history of earlier ones: DPM-Solver++ and LMS."""

from __future__ import annotations

from math import expm1, log, sqrt
from typing import Any

import numpy as np

from eri_runtime.sampling.samplers.steps import (
    Denoise,
    Noise,
    decay,
    is_finite_step,
    is_repeated,
    log_snr,
)
from eri_runtime.sampling.schedule import Point, Schedule
from eri_runtime.sampling.sigmas import Float64


def dpmpp_2m(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Any:
    """DPM-Solver++(2M) and, with eta, its SDE variant (Lu et al. 2022, arXiv 2211.01095, alg. 2).

    x' = (sigma'/sigma)·e^(−eta·h)·x + alpha'·(1 − e^(−(1+eta)·h))·(D + (D − D_1)·h/(2·h_1)) + noise
    """
    before, h_before = None, 0.0
    for here, there in schedule.steps():
        rest, denoised = decay(here, there), denoise(x, here)
        estimate = denoised
        if before is not None and rest > 0:
            estimate = denoised + log(rest) / (2 * h_before) * (denoised - before)
        x = _sde_step(x, estimate, here, there, eta)
        x = _sde_noise(x, noise, here, there, eta, s_noise)
        before, h_before = (denoised, log(rest)) if is_finite_step(here, there) else (None, 0.0)
    return x


def dpmpp_3m_sde(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Any:
    """DPM++ 3M SDE of k-diffusion: exponential Adams–Bashforth of order 3, H = (1 + eta)·h.

    x' = … + alpha'·(phi_2·d_1 − phi_3·d_2), d_i the divided differences of D over h,
    phi_2 = (e^−H − 1)/H + 1, phi_3 = phi_2/H − 1/2
    """
    past: list[tuple[Any, float]] = []  # D and lambda, newest first
    for here, there in schedule.steps():
        denoised = denoise(x, here)
        x = _sde_step(x, denoised, here, there, eta)
        if is_finite_step(here, there):
            past = [(denoised, log_snr(here)), *past][:3]
            correction = _third_order(past, -log(decay(here, there)), eta)
            if correction is not None:
                x = x + there.alpha * correction
        x = _sde_noise(x, noise, here, there, eta, s_noise)
    return x


def _third_order(past: list[tuple[Any, float]], h: float, eta: float) -> Any:
    """Returns phi_2·d_1 − phi_3·d_2, or its first term, or None, as the history allows."""
    if len(past) == 1:
        return None
    H = (1 + eta) * h
    phi_2 = expm1(-H) / H + 1
    (m0, l0), (m1, l1) = past[:2]
    r0 = (l0 - l1) / h
    d1 = (m0 - m1) / r0
    if len(past) == 2:
        return phi_2 * d1
    m2, l2 = past[2]
    r1 = (l1 - l2) / h
    bend = d1 - (m1 - m2) / r1
    return phi_2 * (d1 + r0 / (r0 + r1) * bend) - (phi_2 / H - 0.5) / (r0 + r1) * bend


def _sde_step(x: Any, denoised: Any, here: Point, there: Point, eta: float) -> Any:
    """Returns (sigma'/sigma)·e^(−eta·h)·x + alpha'·(1 − e^(−(1+eta)·h))·D."""
    rest = decay(here, there)
    keep = there.sigma / here.sigma * rest**eta
    return keep * x + there.alpha * (1 - rest ** (1 + eta)) * denoised


def _sde_noise(x: Any, noise: Noise, here: Point, there: Point, eta: float, s_noise: float) -> Any:
    """Adds the noise s_noise·sigma'·sqrt(1 − e^(−2·eta·h))·n to x."""
    up = there.sigma * sqrt(1 - decay(here, there) ** (2 * eta))
    return x + s_noise * up * noise() if up > 0 else x


def lms(denoise: Denoise, noise: Noise, x: Any, schedule: Schedule, *, order: float = 4) -> Any:
    """LMS of k-diffusion: linear multistep (Adams–Bashforth) over tau.

    y' = y + Σ_j d_j·∫ l_j(tau) dtau, d = (x − scale·D)/sigma, l_j Lagrange's basis on earlier tau
    """
    del noise
    clock = schedule.clock
    past: list[tuple[Any, float]] = []  # d and tau, newest first
    for here, there in schedule.steps():
        scale = clock.scale(here)
        slope = (x - scale * denoise(x, here)) / here.sigma
        past = [(slope, clock.tau(here)), *past][: int(order)]
        weights = _adams(np.array([tau for _, tau in past]), clock.tau(there))
        x = clock.scale(there) / scale * x
        for weight, (slope, _) in zip(weights, past, strict=True):
            x = x + clock.scale(there) * weight * slope
        past = past[1:] if is_repeated(here, there) else past
    return x


def _adams(taus: Float64, end: float) -> list[float]:
    """Returns ∫ l_j(tau) dtau from taus[0] to `end` for each j, by exact Gauss–Legendre."""
    nodes, weights = np.polynomial.legendre.leggauss(len(taus))
    half = (end - taus[0]) / 2
    at = taus[0] + half * (nodes + 1)
    integrals = []
    for j, tau in enumerate(taus):
        others = np.delete(taus, j)
        basis = np.prod((at[:, None] - others) / (tau - others), axis=1)
        integrals.append(float(half * (weights @ basis)))
    return integrals
