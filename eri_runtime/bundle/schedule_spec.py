"""The part of the manifest that describes the noise schedule of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# marks a field that older manifests lack: it is written only if it is not at its default
ADDED: Mapping[str, Any] = {"added": True}

Prediction = Literal["eps", "v", "x0", "flow"]
ScheduleKind = Literal["vp", "flow", "edm"]
BetaCurve = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Spacing = Literal["leading", "trailing", "linspace", "karras", "exponential"]
FinalSigma = Literal["zero", "sigma_min", "last"]
ShiftCurve = Literal["exponential", "linear"]


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """The noise schedule of training, with the checkpoint's own numbers.

    A `vp` schedule (variance preserving) uses the beta fields, a `flow` schedule (rectified flow)
    the shift fields, an `edm` schedule (Karras et al. 2022, arXiv 2206.00364) the sigma fields.

    Attributes:
        kind: `vp`, `flow` or `edm`.
        prediction: What the denoiser predicts.
        num_train_timesteps: Number of training timesteps T.
        spacing: How N of the training timesteps are chosen. For `vp` as in Lin et al. 2023
            (arXiv 2305.08891), table 2. For `flow`, the last of the N levels is the shifted 1/T
            with `linspace` (SD3) and 1/N with `trailing` (Flux). For `edm`, the curve of the
            levels: `karras` or `exponential`.
        final: The noise level after the last step: 0, the smallest of training, or once more the
            last (a step that changes nothing).
        beta_start: First beta of `vp`.
        beta_end: Last beta of `vp`.
        beta_curve: The curve between them: linear, linear in sqrt(beta), or a cosine.
        steps_offset: Added to the timesteps of the `leading` spacing.
        zero_terminal_snr: Whether betas are rescaled to zero terminal SNR (Lin et al., alg. 1).
        shift: Constant shift s of `flow`: sigma' = s·sigma / (1 + (s − 1)·sigma).
        dynamic_shift: Whether s = exp(mu) instead, with mu linear in the number of image tokens.
        base_shift: mu at `base_tokens`.
        max_shift: mu at `max_tokens`.
        base_tokens: Number of tokens at which mu is `base_shift`.
        max_tokens: Number of tokens at which mu is `max_shift`.
        shift_curve: The dynamic shift: s = exp(mu), or s = mu.
        shift_terminal: The last level, to which shifted levels are stretched. None: as they are.
        trained_betas: The betas themselves, instead of a curve.
        sigma_min: Smallest level of `edm`.
        sigma_max: Largest level of `edm`.
        sigma_data: Standard deviation of the data of `edm`.
        rho: Exponent of the `karras` levels of `edm`.
    """

    kind: ScheduleKind
    prediction: Prediction
    num_train_timesteps: int = 1000
    spacing: Spacing = "leading"
    final: FinalSigma = "zero"
    # vp
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_curve: BetaCurve = "scaled_linear"
    steps_offset: int = 1
    zero_terminal_snr: bool = False
    # flow
    shift: float = 1.0
    dynamic_shift: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096
    shift_curve: ShiftCurve = field(default="exponential", metadata=ADDED)
    shift_terminal: float | None = field(default=None, metadata=ADDED)
    # vp without a curve
    trained_betas: tuple[float, ...] = field(default=(), metadata=ADDED)
    # edm
    sigma_min: float = field(default=0.002, metadata=ADDED)
    sigma_max: float = field(default=80.0, metadata=ADDED)
    sigma_data: float = field(default=0.5, metadata=ADDED)
    rho: float = field(default=7.0, metadata=ADDED)
