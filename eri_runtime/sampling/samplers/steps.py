"""The step formulas in (alpha, sigma) that the samplers share.

A step leads from point `here` to point `there`. In equations, D is the denoised x_0, n unit noise,
and a prime marks values at `there`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import Any

from eri_runtime.sampling.schedule import Point

Denoise = Callable[[Any, Point], Any]
Noise = Callable[[], Any]


def ddim_step(x: Any, denoised: Any, here: Point, there: Point) -> Any:
    """Returns DDIM's x' (Song et al. 2021, arXiv 2010.02502, eq. 12), exact for a constant D.

    x' = (sigma'/sigma)·x + (alpha' − alpha·sigma'/sigma)·D
    """
    keep = there.sigma / here.sigma
    return keep * x + (there.alpha - here.alpha * keep) * denoised


def split_noise(here: Point, there: Point, eta: float) -> tuple[float, float]:
    """Returns sigma_down and sigma_up, with sigma_down² + sigma_up² = sigma'² (DDIM, eq. 16).

    sigma_up = eta·sigma'·sqrt(1 − (alpha·sigma' / (alpha'·sigma))²)
    """
    up = min(eta * there.sigma * sqrt(max(0.0, 1 - decay(here, there) ** 2)), there.sigma)
    return sqrt(max(0.0, there.sigma**2 - up**2)), up


def ancestral_step(
    x: Any, denoised: Any, here: Point, there: Point, eta: float, draw: Callable[[float], Any]
) -> Any:
    """Returns `ddim_step` to sigma_down, plus the noise `draw(sigma_up)`."""
    down, up = split_noise(here, there, eta)
    x = ddim_step(x, denoised, here, there._replace(sigma=down))
    return x + draw(up) if up > 0 else x


def decay(here: Point, there: Point) -> float:
    """Returns exp(−h), with h = lambda' − lambda and lambda = log(alpha/sigma).

    This is 0 if the step starts from pure noise or ends at the image.
    """
    return min(1.0, here.alpha * there.sigma / (there.alpha * here.sigma))  # rounding may exceed 1


def is_finite_step(here: Point, there: Point) -> bool:
    """Returns whether h is neither infinite nor 0; higher orders divide by it."""
    return decay(here, there) > 0 and not is_repeated(here, there)


def is_repeated(here: Point, there: Point) -> bool:
    """Returns whether both points have the same noise level, so that the step changes nothing.

    A multistep method then forgets the evaluation at `here`: the next one has the same level, and
    differences over a level divide by its change.
    """
    return decay(here, there) >= 1 - 1e-12


def log_snr(point: Point) -> float:
    """Returns lambda = log(alpha/sigma), for a point where both are above 0."""
    return log(point.alpha / point.sigma)
