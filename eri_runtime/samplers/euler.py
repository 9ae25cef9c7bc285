"""First order: DDIM, which is Euler, and the ancestral samplers."""

from __future__ import annotations

from typing import Any

from eri_runtime.samplers.steps import Denoise, Noise, ancestral_step
from eri_runtime.schedule import Schedule


def ddim(
    denoise: Denoise,
    noise: Noise,
    x: Any,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Any:
    """Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16; eta 1 is ancestral DDPM.

    x' = (sigma_d/sigma)·x + (alpha' − alpha·sigma_d/sigma)·D + sigma_up·n
    """
    for here, there in schedule.steps():
        denoised = denoise(x, here)
        x = ancestral_step(x, denoised, here, there, eta, lambda up: s_noise * up * noise())
    return x
