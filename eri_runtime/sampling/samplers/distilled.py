"""Samplers for consistency models: denoise to x_0, then add noise up to the next level."""

from __future__ import annotations

from math import floor, sqrt
from typing import Any

from eri_runtime.sampling.samplers.steps import Denoise, Noise, ddim_step
from eri_runtime.sampling.schedule import Schedule

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0  # factor of t in the boundary condition of the released LCMs


def lcm(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    timestep_scaling: float = TIMESTEP_SCALING,
) -> Any:
    """LCM: multistep consistency sampling (Luo et al. 2023, arXiv 2310.04378, alg. 3).

    x' = alpha'·f + sigma'·n; the last x is f. For `flow`, f = D. For `vp`, with s = 1/2 and
    u = 10·t (`timestep_scaling`),

    f = c_skip·x + c_out·D, c_skip = s²/(u² + s²), c_out = u/sqrt(u² + s²)
    """
    for i, (here, there) in enumerate(schedule.steps()):
        consistent = denoise(x, here)
        if schedule.clock.kind == "vp":
            u = timestep_scaling * here.t
            norm = u**2 + SIGMA_DATA**2
            consistent = SIGMA_DATA**2 / norm * x + u / sqrt(norm) * consistent
        last = i == len(schedule) - 1
        x = consistent if last else there.alpha * consistent + there.sigma * noise()
    return x


def tcd(denoise: Denoise, noise: Noise, x: Any, schedule: Schedule, *, eta: float = 0.3) -> Any:
    """TCD: strategic stochastic sampling (Zheng et al. 2024, arXiv 2402.19159); eta is their gamma.

    x_s = ddim_step(x, D) to s = floor((1 − eta)·t')
    x'  = (alpha'/alpha_s)·x_s + sqrt(1 − (alpha'/alpha_s)²)·n

    The last step is ddim_step(x, D), without noise.
    """
    for i, (here, there) in enumerate(schedule.steps()):
        denoised = denoise(x, here)
        if i == len(schedule) - 1 or eta == 0:
            x = ddim_step(x, denoised, here, there)
            continue
        s = schedule.clock.at_t(floor((1 - eta) * there.t))
        s = min(s, there, key=lambda point: point.sigma)  # t' may have been rounded up
        keep = min(1.0, there.alpha / s.alpha)
        x = keep * ddim_step(x, denoised, here, s) + sqrt(1 - keep**2) * noise()
    return x
