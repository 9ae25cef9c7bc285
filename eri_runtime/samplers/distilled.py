"""Consistency models: jump to x_0, and back to a lower noise."""

from __future__ import annotations

from math import floor, sqrt
from typing import Any

from eri_runtime.samplers.steps import Denoise, Noise, move
from eri_runtime.schedule import Schedule

SIGMA_DATA = 0.5
CLOCK_SCALE = 10.0  # the released LCMs scale t by this in their boundary condition


def lcm(denoise: Denoise, noise: Noise, x: Any, schedule: Schedule) -> Any:
    """Luo et al. 2023 (arXiv 2310.04378), alg. 3: x' = alpha'·f + sigma'·n, the last x is f.

    f = c_skip·x + c_out·D, c_skip = s²/(u² + s²), c_out = u/sqrt(u² + s²), s = 1/2, u = 10·t for
    `vp`; f = D for `flow`.
    """
    for i, (here, there) in enumerate(schedule.steps()):
        jump = denoise(x, here)
        if schedule.clock.kind == "vp":
            clock = CLOCK_SCALE * here.t
            norm = clock**2 + SIGMA_DATA**2
            jump = SIGMA_DATA**2 / norm * x + clock / sqrt(norm) * jump
        last = i == len(schedule) - 1
        x = jump if last else there.alpha * jump + there.sigma * noise()
    return x


def tcd(denoise: Denoise, noise: Noise, x: Any, schedule: Schedule, *, eta: float = 0.3) -> Any:
    """Zheng et al. 2024 (arXiv 2402.19159), strategic stochastic sampling; eta is their gamma.

    x_s = move(x, D) to s = floor((1 − eta)·t'); x' = (alpha'/alpha_s)·x_s + sqrt(1 −
    (alpha'/alpha_s)²)·n. The last step is move(x, D) and adds no noise.
    """
    for i, (here, there) in enumerate(schedule.steps()):
        denoised = denoise(x, here)
        if i == len(schedule) - 1 or eta == 0:
            x = move(x, denoised, here, there)
            continue
        less = schedule.clock.at_t(floor((1 - eta) * there.t))
        less = min(less, there, key=lambda point: point.sigma)  # t' itself may have been rounded up
        keep = min(1.0, there.alpha / less.alpha)
        x = keep * move(x, denoised, here, less) + sqrt(1 - keep**2) * noise()
    return x
