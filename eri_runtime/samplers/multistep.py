"""One evaluation a step, and a memory of earlier ones: DPM-Solver++, LMS, UniPC."""

from __future__ import annotations

from math import expm1, factorial, log, sqrt
from typing import Any

import numpy as np

from eri_runtime.samplers.steps import Denoise, Noise, decay, is_finite_step, log_snr, move
from eri_runtime.schedule import Point, Schedule


def dpmpp_2m(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Any:
    """DPM-Solver++(2M) and, with eta, its SDE (Lu et al. 2022, arXiv 2211.01095, alg. 2).

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
    """k-diffusion's DPM++ 3M SDE: exponential Adams-Bashforth of order 3, H = (1 + eta)·h.

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
    """phi_2·d_1 − phi_3·d_2 with as many differences as there are; None for none."""
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
    """(sigma'/sigma)·e^(−eta·h)·x + alpha'·(1 − e^(−(1+eta)·h))·D."""
    rest = decay(here, there)
    keep = there.sigma / here.sigma * rest**eta
    return keep * x + there.alpha * (1 - rest ** (1 + eta)) * denoised


def _sde_noise(x: Any, noise: Noise, here: Point, there: Point, eta: float, s_noise: float) -> Any:
    """Add sigma'·sqrt(1 − e^(−2·eta·h))·n."""
    up = there.sigma * sqrt(1 - decay(here, there) ** (2 * eta))
    return x + s_noise * up * noise() if up > 0 else x


def lms(denoise: Denoise, noise: Noise, x: Any, schedule: Schedule, *, order: float = 4) -> Any:
    """Linear multistep (Adams-Bashforth) over tau, k-diffusion's LMS.

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
    return x


def _adams(taus: np.ndarray, end: float) -> list[float]:
    """∫ l_j from taus[0] to `end`, by Gauss-Legendre of a degree that makes it exact."""
    nodes, weights = np.polynomial.legendre.leggauss(len(taus))
    half = (end - taus[0]) / 2
    at = taus[0] + half * (nodes + 1)
    integrals = []
    for j, tau in enumerate(taus):
        others = np.delete(taus, j)
        basis = np.prod((at[:, None] - others) / (tau - others), axis=1)
        integrals.append(float(half * (weights @ basis)))
    return integrals


def unipc(denoise: Denoise, noise: Noise, x: Any, schedule: Schedule, *, order: float = 2) -> Any:
    """UniPC in x_0 with B_2(h) (Zhao et al. 2023, arXiv 2302.04867, alg. 5 to 8).

    x' = move(x, D_0) − alpha'·B·Σ_i rho_i·(D_i − D_0)/r_i, B = e^−h − 1, r_i = (l_i − l_0)/h;
    the corrector takes the step again with the new D among the D_i (r = 1). The order falls to 1
    at the last step.
    """
    del noise
    past: list[tuple[Any, Point]] = []  # newest first
    taken: tuple[Any, int] | None = None  # where the last step began, and its order
    for k, (here, there) in enumerate(schedule.steps()):
        denoised = denoise(x, here)
        if taken is not None:
            start, last_order = taken
            x = _unipc_step(start, past[:last_order], here, denoised)
        past = [(denoised, here), *past][:3]
        if not is_finite_step(here, there):  # first order, not corrected
            x, taken = move(x, denoised, here, there), None
            past = past if here.alpha > 0 else []
            continue
        this_order = min(int(order), len(past), len(schedule) - k)
        taken = (x, this_order)
        x = _unipc_step(x, past[:this_order], there, None)
    return x


def _unipc_step(x: Any, past: list[tuple[Any, Point]], there: Point, new: Any) -> Any:
    """From `past[0]`'s point to `there`; `new` is D there for the corrector, None for none."""
    m0, here = past[0]
    h = log_snr(there) - log_snr(here)
    x = move(x, m0, here, there)
    ratios = [(log_snr(point) - log_snr(here)) / h for _, point in past[1:]]
    values = [m for m, _ in past[1:]]
    if new is not None:
        ratios, values = [*ratios, 1.0], [*values, new]
    for rho, r, m in zip(_unipc_weights(ratios, h), ratios, values, strict=True):
        x = x - there.alpha * expm1(-h) * rho / r * (m - m0)
    return x


def _unipc_weights(ratios: list[float], h: float) -> list[float]:
    """rho of R·rho = b, R_ki = r_i^k, b_k = (k + 1)!·phi_(k+2)(−h)·h/B; 1/2 when there is one."""
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    R = np.array([[r**k for r in ratios] for k in range(len(ratios))])
    phi, b = expm1(-h), []
    for k in range(1, len(ratios) + 1):
        phi = phi / -h - 1 / factorial(k)
        b.append(phi * factorial(k) / expm1(-h))
    return [float(rho) for rho in np.linalg.solve(R, b)]
