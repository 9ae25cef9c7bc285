"""Noise levels of flow models as plain arrays, under the names of the Rust sampling API.

Pipelines use `make_schedule` instead, which returns the same levels for Flux.
"""

from __future__ import annotations

import numpy as np

from eri_runtime.checks import integer, real
from eri_runtime.sampling import Float64, shift_sigma

MAX_STEPS = 1_000_000
MIN_SHIFT, MAX_SHIFT = 1e-6, 1e6  # outside this range neighbouring levels become equal


def get_linear_schedule(num_steps: int) -> Float64:
    """Returns evenly spaced noise levels of rectified flow, sigma_i = 1 − i/N.

    On the straight path x_sigma = (1 − sigma)·x_0 + sigma·noise (Liu et al. 2022,
    arXiv 2209.03003), an Euler step is x += (sigma_(i+1) − sigma_i)·v. The denoiser's `timestep`
    is 1000·sigma.

    Args:
        num_steps: Number of denoising steps N, from 1 to 10⁶.

    Returns:
        The levels, (num_steps + 1,) float64, from 1 (pure noise) to 0 (the image).

    Raises:
        UsageError: If `num_steps` is out of range.

    Example:
        >>> eri.get_linear_schedule(4)
        array([1.  , 0.75, 0.5 , 0.25, 0.  ])
    """
    return np.linspace(1.0, 0.0, integer("num_steps", num_steps, 1, MAX_STEPS) + 1)


def get_flux_schedule(num_steps: int, shift: float) -> Float64:
    """Returns the noise levels of Flux: the linear schedule, shifted towards the noise.

        sigma' = shift·sigma / (1 + (shift − 1)·sigma) = sigmoid(logit(sigma) + ln shift)

    (Esser et al. 2024, arXiv 2403.03206, eq. 23). Flux.1-schnell uses shift 1, which changes
    nothing. Flux.1-dev uses exp(mu), with mu linear in the number of image tokens: 0.5 for 256
    tokens, 1.15 for 4096.

    Args:
        num_steps: Number of denoising steps, from 1 to 10⁶.
        shift: From 10⁻⁶ to 10⁶; above 1 it moves steps towards the noise.

    Returns:
        The levels, (num_steps + 1,) float64, from 1 (pure noise) to 0 (the image).

    Raises:
        UsageError: If an argument is out of range.

    Example:
        >>> eri.get_flux_schedule(4, shift=3.0)
        array([1.  , 0.9 , 0.75, 0.5 , 0.  ])
    """
    expected = f"a number from {MIN_SHIFT:g} to {MAX_SHIFT:g}"
    shift = real("shift", shift, expected, lambda number: MIN_SHIFT <= number <= MAX_SHIFT)
    sigmas = shift_sigma(get_linear_schedule(num_steps), shift)
    sigmas[0] = 1.0  # exact, where a tiny shift is rounded in 1 + (shift − 1)
    return sigmas
