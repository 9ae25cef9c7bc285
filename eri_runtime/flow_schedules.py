"""Noise levels of the flow models as plain arrays, under the names of the Rust API.

`schedule.make_schedule` is what a call uses; with Flux's spec its levels are these.
"""

from __future__ import annotations

import numpy as np

from eri_runtime.checks import real, whole
from eri_runtime.schedule import Float64, shift_sigma

MOST_STEPS = 1_000_000
LEAST_SHIFT, MOST_SHIFT = 1e-6, 1e6  # beyond them neighbouring levels become one


def get_linear_schedule(num_steps: int) -> Float64:
    """sigma_i = 1 − i/N: (num_steps + 1,) float64 from 1, pure noise, to 0, the image.

    The straight path of rectified flow, x_sigma = (1 − sigma)·x_0 + sigma·noise, in equal steps
    (Liu et al. 2022, arXiv 2209.03003). The training clock is t = 1000·sigma, and a step is
    x += (sigma_(i+1) − sigma_i)·v. Raises `UsageError` for a number of steps outside 1 … 10⁶.
    """
    return np.linspace(1.0, 0.0, whole("num_steps", num_steps, 1, MOST_STEPS) + 1)


def get_flux_schedule(num_steps: int, shift: float) -> Float64:
    """The linear schedule with more of its steps where the noise is; of the same shape and ends.

        sigma' = shift·sigma / (1 + (shift − 1)·sigma) = sigmoid(logit(sigma) + ln shift)

    (Esser et al. 2024, arXiv 2403.03206, eq. 23). `shift` is 10⁻⁶ to 10⁶: 1 changes nothing,
    Flux.1-schnell has 1, and Flux.1-dev exp(mu) with mu linear in the number of tokens, 0.5 for 256
    to 1.15 for 4096. Raises `UsageError` for a bad shift or number of steps.
    """
    expected = f"a number from {LEAST_SHIFT:g} to {MOST_SHIFT:g}"
    shift = real("shift", shift, expected, lambda number: LEAST_SHIFT <= number <= MOST_SHIFT)
    sigmas = shift_sigma(get_linear_schedule(num_steps), shift)
    sigmas[0] = 1.0  # what a tiny shift loses in 1 + (shift − 1)
    return sigmas
