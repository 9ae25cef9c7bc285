"""One step in (alpha, sigma): what every sampler is made of."""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import Any

from eri_runtime.schedule import Point

Denoise = Callable[[Any, Point], Any]
Noise = Callable[[], Any]


def move(x: Any, denoised: Any, here: Point, there: Point) -> Any:
    """DDIM's step (Song et al. 2021, arXiv 2010.02502, eq. 12): exact for a constant D.

    x' = (sigma'/sigma)·x + (alpha' − alpha·sigma'/sigma)·D
    """
    keep = there.sigma / here.sigma
    return keep * x + (there.alpha - here.alpha * keep) * denoised


def split_noise(here: Point, there: Point, eta: float) -> tuple[float, float]:
    """sigma_down, sigma_up with sigma_down² + sigma_up² = sigma'² (DDIM eq. 16 in alpha, sigma).

    sigma_up = eta·sigma'·sqrt(1 − (alpha·sigma' / (alpha'·sigma))²)
    """
    up = min(eta * there.sigma * sqrt(max(0.0, 1 - decay(here, there) ** 2)), there.sigma)
    return sqrt(max(0.0, there.sigma**2 - up**2)), up


def ancestral_step(
    x: Any, denoised: Any, here: Point, there: Point, eta: float, draw: Callable[[float], Any]
) -> Any:
    """`move` down to sigma_down, then `draw(sigma_up)` of noise."""
    down, up = split_noise(here, there, eta)
    x = move(x, denoised, here, there._replace(sigma=down))
    return x + draw(up) if up > 0 else x


def decay(here: Point, there: Point) -> float:
    """exp(−h), h = lambda' − lambda, lambda = log(alpha/sigma); 0 from pure noise or to none."""
    return min(1.0, here.alpha * there.sigma / (there.alpha * here.sigma))  # 1 but for rounding


def is_finite_step(here: Point, there: Point) -> bool:
    """Whether h is neither infinite nor 0, so that a higher order has something to divide by."""
    return 0 < decay(here, there) < 1 - 1e-12


def log_snr(point: Point) -> float:
    """lambda = log(alpha/sigma), of a point that has both."""
    return log(point.alpha / point.sigma)
