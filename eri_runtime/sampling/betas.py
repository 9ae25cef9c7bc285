"""The betas of a `vp` schedule (DDPM) and their cumulative product alpha-bar."""

from __future__ import annotations

import numpy as np

from eri_runtime.bundle import BetaCurve, ScheduleSpec
from eri_runtime.sampling.sigmas import Float64


def alphas_cumprod(spec: ScheduleSpec) -> Float64:
    """Returns alpha-bar_t = Π_{s≤t} (1 − beta_s), (num_train_timesteps,) float64.

    Ho et al. 2020 (arXiv 2006.11239), eq. 4.
    """
    count, ends = spec.num_train_timesteps, (spec.beta_start, spec.beta_end)
    betas = np.array(spec.trained_betas or make_betas(spec.beta_curve, count, *ends))
    alpha_bar = np.cumprod(1 - betas, dtype=np.float64)
    return zero_terminal_snr(alpha_bar) if spec.zero_terminal_snr else alpha_bar


def make_betas(curve: BetaCurve, count: int, start: float, end: float) -> Float64:
    """Returns beta_t, (count,): linear, linear in sqrt(beta), or Nichol & Dhariwal's cosine."""
    if curve == "linear":
        return np.linspace(start, end, count)
    if curve == "scaled_linear":
        return np.square(np.linspace(start**0.5, end**0.5, count))
    # arXiv 2102.09672, eq. 17: alpha-bar(t) = cos²((t + 0.008) / 1.008 · π/2), beta capped
    edge = np.arange(count + 1) / count
    alpha_bar = np.cos((edge + 0.008) / 1.008 * np.pi / 2) ** 2
    betas: Float64 = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    return betas


def zero_terminal_snr(alpha_bar: Float64) -> Float64:
    """Shifts and scales sqrt(alpha-bar) so that its last value is 0.

    Lin et al. 2023 (arXiv 2305.08891), alg. 1. Then sets the last alpha-bar to 2⁻²⁴, as diffusers
    does, so that sigma/alpha stays finite.
    """
    root = np.sqrt(alpha_bar)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return np.append(root[:-1] ** 2, 2.0**-24)
