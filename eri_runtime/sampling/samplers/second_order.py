"""Two evaluations per step: Heun, the midpoint method, and DPM-Solver++'s single-step family.

Each falls back to one evaluation if the step starts from pure noise or ends at the image.
"""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Any

from eri_runtime.sampling.samplers.steps import (
    Denoise,
    Noise,
    ancestral_step,
    ddim_step,
    decay,
    is_finite_step,
    split_noise,
)
from eri_runtime.sampling.schedule import Point, Schedule


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
    """Heun with churn (Karras et al. 2022, arXiv 2206.00364, alg. 2), over tau and y = x/scale.

    tau^ = tau·(1 + gamma), y^ = y + s_noise·sqrt(tau^² − tau²)·n, where s_tmin ≤ tau ≤ s_tmax
    x' = ddim_step(x^, D) + scale'·(tau^ − tau')/(2·tau')·(D' − D)
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
        x = ddim_step(x, first, here, there)
        if there.sigma > 0:
            tau_next = clock.tau(there)
            weight = clock.scale(there) * (clock.tau(here) - tau_next) / (2 * tau_next)
            x = x + weight * (denoise(x, there) - first)
    return x


def dpm2(denoise: Denoise, noise: Noise, x: Any, schedule: Schedule, *, eta: float = 0.0) -> Any:
    """DPM2 of k-diffusion: the midpoint method in log tau.

    Karras et al. 2022 (arXiv 2206.00364), alg. 2 with alpha = 1/2. With eta it steps to sigma_down
    and adds noise, which is DPM2 a.

    y' = y + (tau_d − tau)·(x_m − scale_m·D_m)/sigma_m, tau_m = sqrt(tau·tau_d)
    """
    clock = schedule.clock
    for here, there in schedule.steps():
        down, up = split_noise(here, there, eta)
        end = there._replace(sigma=down)
        first = denoise(x, here)
        if down == 0:
            x = ddim_step(x, first, here, end)
        else:
            tau, tau_end = clock.tau(here), down / clock.scale(there)
            middle = clock.at(sqrt(tau * tau_end))
            half = ddim_step(x, first, here, middle)
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
    """DPM-Solver++(2S), ancestral (Lu et al. 2022, arXiv 2211.01095, alg. 1 with r = 1/2).

    x_m = ddim_step(x, D) halfway in lambda to sigma_down
    x'  = ddim_step(x, D_m) to sigma_down, + sigma_up·n
    """
    for here, there in schedule.steps():
        down, up = split_noise(here, there, eta)
        end = there._replace(sigma=down)
        denoised = denoise(x, here)
        if decay(here, end) > 0:
            middle = halfway(schedule, here, end)
            denoised = denoise(ddim_step(x, denoised, here, middle), middle)
        x = ddim_step(x, denoised, here, end)
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
    """DPM++ SDE of k-diffusion, with r = 1/2: `dpmpp_2s` with noise at the midpoint too.

    A step draws two noises, increments of one Brownian path over r = sigma/alpha:
    n = (sqrt(r − r_m)·n_1 + sqrt(r_m − r')·n_2)/sqrt(r − r')
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
    """Returns noise that is already drawn, scaled to sigma_up."""
    return s_noise * up * n


def halfway(schedule: Schedule, here: Point, there: Point) -> Point:
    """Returns the point with the mean of both points' log(alpha/sigma)."""
    ratio = sqrt(here.sigma / here.alpha * there.sigma / there.alpha)
    return schedule.clock.at(ratio / (1 + ratio) if schedule.clock.kind == "flow" else ratio)
