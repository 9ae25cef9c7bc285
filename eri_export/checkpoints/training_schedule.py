"""The training schedule of a checkpoint's scheduler: betas, a flow's shift, or EDM's levels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import numpy as np

from eri_export.checkpoints.scheduler_settings import Settings
from eri_runtime.bundle import (
    BetaCurve,
    Family,
    FinalSigma,
    Prediction,
    ScheduleSpec,
    ShiftCurve,
    Spacing,
)
from eri_runtime.sampling import alphas_cumprod

PREDICTIONS: Mapping[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SPACINGS = ("leading", "trailing", "linspace")
CURVES = ("linear", "scaled_linear", "squaredcos_cap_v2")
CLASS_SPACINGS = {"DPMSolverSinglestepScheduler": "linspace"}  # it has no such argument
# their last step leads to alpha-bar of t = 0, unless set_alpha_to_one
TO_ONE = ("DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler")
MAX_SHIFT: Mapping[Family, float] = {"sdxl": 1.15, "sd35": 1.16, "flux": 1.15}  # the pipelines'


BETAS = (1e-9, 0.999999)
COUNTS = (1, 100_000)  # training timesteps


def training_schedule(settings: Settings) -> ScheduleSpec:
    """Returns the schedule; raises `CheckpointError` for a setting that it cannot express."""
    if settings.name.startswith("EDM"):
        return _edm(settings)
    return _flow(settings) if settings.flow else _vp(settings)


def _vp(settings: Settings) -> ScheduleSpec:
    count = int(settings.number("num_train_timesteps", 1000, *COUNTS))
    betas = settings.get("trained_betas")
    if betas is not None and not _are_betas(betas, count):
        raise settings.refuse("trained_betas", f"{count} numbers between 0 and 1, as many as steps")
    spacing = CLASS_SPACINGS.get(settings.name)
    spec = ScheduleSpec(
        kind="vp",
        prediction=PREDICTIONS[_one_of(settings, "prediction_type", PREDICTIONS)],
        num_train_timesteps=count,
        beta_start=settings.number("beta_start", 0.0, *BETAS),
        beta_end=settings.number("beta_end", 0.0, *BETAS),
        beta_curve=cast(
            BetaCurve,
            "linear" if betas is not None else _one_of(settings, "beta_schedule", CURVES),
        ),
        spacing=cast(Spacing, spacing or _one_of(settings, "timestep_spacing", SPACINGS)),
        final=_final(settings),
        steps_offset=int(settings.number("steps_offset", 0, 0, count)),
        zero_terminal_snr=bool(settings.get("rescale_betas_zero_snr", False)),
        trained_betas=() if betas is None else tuple(map(float, betas)),
    )
    _check_clipped(settings, spec)
    return spec


def _are_betas(betas: Any, count: int) -> bool:
    """Returns whether these are as many betas as there are training timesteps."""
    listed = isinstance(betas, list | tuple) and len(betas) == count
    return listed and all(isinstance(each, float) and 0 < each < 1 for each in betas)


def _check_clipped(settings: Settings, spec: ScheduleSpec) -> None:
    """Raises `CheckpointError` if `lambda_min_clipped` takes away training timesteps."""
    if settings.get("lambda_min_clipped") is None or settings.spread != "none":
        return
    alpha_bar = alphas_cumprod(spec)
    least = 0.5 * np.log(alpha_bar[-1] / (1 - alpha_bar[-1]))
    if settings.get("lambda_min_clipped", -np.inf) > least:
        expected = f"at most {least:.3g}, the least log(alpha/sigma) of the schedule"
        raise settings.refuse("lambda_min_clipped", expected)


def _final(settings: Settings) -> FinalSigma:
    """Returns the noise level after the last step, which the classes name differently.

    Published SDXL configs have DDIM's option with an Euler scheduler, which ignores it.
    """
    if settings.get("interpolation_type", "linear") == "log_linear" and settings.spread == "none":
        return "sigma_min"
    if settings.name in TO_ONE:
        return "zero" if settings.get("set_alpha_to_one") else "sigma_min"
    if settings.name == "TCDScheduler":  # to alpha-bar of t = 0
        return "sigma_min"
    above_zero = settings.name in ("DEISMultistepScheduler", "SASolverScheduler")
    if above_zero or settings.get("final_sigmas_type", "zero") == "sigma_min":
        repeats = above_zero or settings.name == "UniPCMultistepScheduler"
        return "last" if repeats and (settings.flow or settings.spread != "none") else "sigma_min"
    if settings.get("final_sigmas_type", "zero") != "zero":
        raise settings.refuse("final_sigmas_type", "zero or sigma_min")
    return "zero"


def _flow(settings: Settings) -> ScheduleSpec:
    matching = settings.name.startswith("FlowMatch")
    if not matching:
        if settings.get("prediction_type") != "flow_prediction":
            raise settings.refuse("prediction_type", "flow_prediction with use_flow_sigmas")
        if settings.spread != "none":
            raise settings.refuse("use_flow_sigmas", "False with use_karras_sigmas and the like")
    final = _final(settings)
    if final == "sigma_min":
        raise settings.refuse("final_sigmas_type", "zero with use_flow_sigmas")
    terminal = settings.get("shift_terminal")
    base_tokens = settings.number("base_image_seq_len", 256, 1, 1e8)
    trailing = settings.family == "flux" and "sigmas" in _passed(settings)
    return ScheduleSpec(
        kind="flow",
        prediction="flow",
        num_train_timesteps=int(settings.number("num_train_timesteps", 1000, *COUNTS)),
        # diffusers' Flux pipeline passes N noise levels down to 1/N, its SD3 pipeline passes none
        spacing="trailing" if trailing else "linspace",
        final=final,
        shift=settings.number("shift" if matching else "flow_shift", 1.0, 1e-3, 1e3),
        dynamic_shift=bool(settings.get("use_dynamic_shifting", False)),
        base_shift=settings.number("base_shift", 0.5, -10, 10),
        max_shift=settings.number("max_shift", MAX_SHIFT[settings.family], -10, 10),
        base_tokens=int(base_tokens),
        max_tokens=int(settings.number("max_image_seq_len", 4096, base_tokens + 1, 1e9)),
        shift_curve=cast(
            ShiftCurve, _one_of(settings, "time_shift_type", ("exponential", "linear"))
        ),
        shift_terminal=settings.number("shift_terminal", 0, 1e-6, 0.999) if terminal else None,
    )


def _passed(settings: Settings) -> Collection[str]:
    """Returns what Flux's pipeline passes to the scheduler besides the number of steps."""
    own = settings.name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler")
    return ("sigmas", "mu") if own else ()


def _edm(settings: Settings) -> ScheduleSpec:
    known = ("epsilon", "v_prediction")
    curves = ("karras", "exponential")
    least = settings.number("sigma_min", 0.002, 1e-6, 1e6)
    return ScheduleSpec(
        kind="edm",
        prediction=PREDICTIONS[_one_of(settings, "prediction_type", known)],
        num_train_timesteps=int(settings.number("num_train_timesteps", 1000, *COUNTS)),
        spacing=cast(Spacing, _one_of(settings, "sigma_schedule", curves)),
        final=_final(settings),
        sigma_min=least,
        sigma_max=settings.number("sigma_max", 80.0, 1.000001 * least, 1e6),
        sigma_data=settings.number("sigma_data", 0.5, 1e-6, 1e6),
        rho=settings.number("rho", 7.0, 1e-2, 1e3),
    )


def _one_of(settings: Settings, key: str, known: Collection[Any]) -> str:
    """Returns the value of a key; raises `CheckpointError` for one that is not known."""
    value = settings.get(key, next(iter(known)))
    if value not in known:
        raise settings.refuse(key, f"one of {', '.join(known)}")
    return str(value)
