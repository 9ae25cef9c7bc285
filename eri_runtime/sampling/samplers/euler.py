"""First order: DDIM, which equals Euler, and the ancestral samplers."""

from __future__ import annotations

from math import sqrt
from typing import Any

from eri_runtime.sampling.samplers.steps import (
    Denoise,
    Noise,
    ancestral_step,
    ddim_step,
    split_noise,
)
from eri_runtime.sampling.schedule import Schedule


def ddim(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Any:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16); eta = 1 is ancestral DDPM.

    x' = (sigma_d/sigma)·x + (alpha' − alpha·sigma_d/sigma)·D + sigma_up·n
    """
    for here, there in schedule.steps():
        denoised = denoise(x, here)
        x = ancestral_step(x, denoised, here, there, eta, lambda up: s_noise * up * noise())
    return x


def ddpm(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    eta: float = 1.0,
    large: float = 0,
) -> Any:
    """DDPM (Ho et al. 2020, arXiv 2006.11239, eq. 7), which is DDIM with eta = 1.

    With `large`, the noise has the variance beta = 1 − (alpha/alpha')² of the forward step, also at
    the last step, unless that starts at t = 0.
    """
    if not large:
        return ddim(denoise, noise, x, schedule, eta=eta)
    for here, there in schedule.steps():
        denoised = denoise(x, here)
        down, _ = split_noise(here, there, eta)
        x = ddim_step(x, denoised, here, there._replace(sigma=down))
        if here.t > 0:
            x = x + sqrt(1 - (here.alpha / there.alpha) ** 2) * noise()
    return x
