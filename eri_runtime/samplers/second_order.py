"""Two evaluations a step: Heun, the midpoint method, and DPM-Solver++'s single-step family.

Each falls back to one evaluation where the step starts from pure noise or ends at none.
"""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Any

from eri_runtime.samplers.steps import (
    Denoise,
    Noise,
    ancestral_step,
    decay,
    is_finite_step,
    move,
    split_noise,
)
from eri_runtime.schedule import Point, Schedule


def heun(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
) -> Any:
    """Karras et al. 2022 (arXiv 2206.00364), algorithm 2, over tau and y = x/scale.

    tau^ = tau·(1 + gamma), y^ = y + s_noise·sqrt(tau^² − tau²)·n, where s_tmin ≤ tau ≤ s_tmax
    x' = move(x^, D) + scale'·(tau^ − tau')/(2·tau')·(D' − D)
    """
    clock = schedule.clock
    gamma = min(s_churn / len(schedule), sqrt(2) - 1)
    for here, there in schedule.steps():
        tau = clock.tau(here)
        if gamma > 0 and s_tmin <= tau <= s_tmax:
            hat = clock.at(tau * (1 + gamma))
            added = clock.scale(hat) * s_noise * tau * sqrt(gamma * (2 + gamma))
            x = clock.scale(hat) / clock.scale(here) * x + added * noise()
            here = hat
        first = denoise(x, here)
        x = move(x, first, here, there)
        if there.sigma > 0:
            tau_next = clock.tau(there)
            weight = clock.scale(there) * (clock.tau(here) - tau_next) / (2 * tau_next)
            x = x + weight * (denoise(x, there) - first)
    return x


def dpm2(denoise: Denoise, noise: Noise, x: Any, schedule: Schedule, *, eta: float = 0.0) -> Any:
    """The midpoint method in log tau (Karras et al. 2022, alg. 2 with alpha 1/2), k-diffusion's
    DPM2; with eta it stops at sigma_down and adds noise, DPM2 a.

    y' = y + (tau_d − tau)·(x_m − scale_m·D_m)/sigma_m, tau_m = sqrt(tau·tau_d)
    """
    clock = schedule.clock
    for here, there in schedule.steps():
        down, up = split_noise(here, there, eta)
        end = there._replace(sigma=down)
        first = denoise(x, here)
        if down == 0:
            x = move(x, first, here, end)
        else:
            tau, tau_end = clock.tau(here), down / clock.scale(there)
            middle = clock.at(sqrt(tau * tau_end))
            half = move(x, first, here, middle)
            slope = (half - clock.scale(middle) * denoise(half, middle)) / middle.sigma
            x = clock.scale(there) * (x / clock.scale(here) + (tau_end - tau) * slope)
        if up > 0:
            x = x + up * noise()
    return x


def dpmpp_2s(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Any:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv 2211.01095, alg. 1 with r = 1/2), ancestral.

    x_m = move(x, D) halfway in lambda to sigma_down; x' = move(x, D_m) to it, + sigma_up·n
    """
    for here, there in schedule.steps():
        down, up = split_noise(here, there, eta)
        end = there._replace(sigma=down)
        denoised = denoise(x, here)
        if decay(here, end) > 0:
            middle = halfway(schedule, here, end)
            denoised = denoise(move(x, denoised, here, middle), middle)
        x = move(x, denoised, here, end)
        if up > 0:
            x = x + s_noise * up * noise()
    return x


def dpmpp_sde(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Any:
    """k-diffusion's DPM++ SDE with r = 1/2: `dpmpp_2s`, with noise at the midpoint too.

    Both noises are of one Brownian path over r = sigma/alpha, n = (sqrt(r − r_m)·n_1 +
    sqrt(r_m − r')·n_2)/sqrt(r − r'), so a step draws two.
    """
    for here, there in schedule.steps():
        denoised = denoise(x, here)
        rest = decay(here, there)
        if not is_finite_step(here, there):
            x = ancestral_step(x, denoised, here, there, eta, lambda up: s_noise * up * noise())
            continue
        middle = halfway(schedule, here, there)
        early = noise() if eta > 0 else None
        half = ancestral_step(x, denoised, here, middle, eta, partial(_scaled, s_noise, early))
        denoised = denoise(half, middle)

        def path(up: float, n: Any = early, left: float = rest) -> Any:
            first = sqrt((1 - sqrt(left)) / (1 - left))
            return s_noise * up * (first * n + sqrt(1 - first**2) * noise())

        x = ancestral_step(x, denoised, here, there, eta, path)
    return x


def _scaled(s_noise: float, n: Any, up: float) -> Any:
    return s_noise * up * n


def halfway(schedule: Schedule, here: Point, there: Point) -> Point:
    """The point with the mean log(alpha/sigma)."""
    ratio = sqrt(here.sigma / here.alpha * there.sigma / there.alpha)
    return schedule.clock.at(ratio / (1 + ratio) if schedule.clock.kind == "flow" else ratio)
