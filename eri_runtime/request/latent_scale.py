"""The scale of noisy latents in diffusers' schedulers, where it is not the denoiser's."""

from __future__ import annotations

from eri_runtime.bundle import Bundle
from eri_runtime.request.request import Request
from eri_runtime.sampling import Point

# these schedulers of diffusers keep x/alpha = x_0 + (sigma/alpha)·noise, as k-diffusion does
OVER_ALPHA = ("euler", "euler_a", "heun", "lms", "dpm2", "dpm2_a", "dpmpp_sde")


def scheduler_scale(bundle: Bundle, request: Request, at: Point) -> float:
    """Returns what latents at a point are multiplied by for the scale of diffusers' scheduler.

    That is 1/alpha for schedulers in k-diffusion's scale and 1 for all others, and for flows. It
    matters only between steps: at the end alpha is 1.
    """
    if bundle.schedule.kind != "vp" or request.sampler.name not in OVER_ALPHA:
        return 1.0
    return 1 / at.alpha
