"""What a call that says nothing draws with: the checkpoint's scheduler as a sampler of ours.

`SCHEDULERS` has a row for each class of diffusers that the pipelines of SDXL, SD3.5 and Flux take:
our sampler, and how the class chooses its levels. What no sampler here follows is refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from eri_export.checkpoints.checkpoint import Checkpoint
from eri_export.checkpoints.scheduler_settings import FIX, Settings, arguments_of
from eri_runtime.bundle import Defaults, LevelSpec, Rounding
from eri_runtime.errors import CheckpointError

ENDS = ("sigma_min", "sigma_max")
STRIDES = LevelSpec(start="unit", stride=True)


@dataclass(frozen=True, kw_only=True)
class Own:
    """The sampler, options and levels of a call that names none.

    Attributes:
        sampler: Name of the sampler.
        options: Its options, where they are not at their defaults.
        levels: How the levels are chosen; None as `make_schedule` does.
        clip: Largest absolute value of x_0, or None.
        thresholding: Percentile and largest value of x_0's thresholding, or nothing.
    """

    sampler: str
    options: Mapping[str, float] = field(default_factory=dict)
    levels: LevelSpec | None = None
    clip: float | None = None
    thresholding: tuple[float, ...] = ()

    def into(self, defaults: Defaults) -> Defaults:
        """Returns a call's defaults with these."""
        return dataclasses.replace(
            defaults,
            sampler=self.sampler,
            sampler_options=dict(self.options),
            levels=self.levels,
            clip=self.clip,
            thresholding=self.thresholding,
        )


def settings_of(checkpoint: Checkpoint) -> Settings:
    """Returns the checkpoint's scheduler; raises `CheckpointError` for one that is not read."""
    where = checkpoint.scheduler_file or checkpoint.root / "scheduler"
    name = str(checkpoint.scheduler.get("_class_name"))
    if name not in SCHEDULERS:
        raise CheckpointError(
            where,
            got=f"class {name!r}",
            expected=f"one of {', '.join(SCHEDULERS)}",
            fix=FIX,
        )
    config = {**arguments_of(name), **checkpoint.scheduler}
    settings = Settings(where, name, config, checkpoint.family)
    settings.check_spread()
    matching, sdxl = name.startswith("FlowMatch"), checkpoint.family == "sdxl"
    if matching if sdxl else not settings.flow:
        kind = "a DDPM-like one" if sdxl else "a flow-matching one"
        expected = f"{kind}, as diffusers' pipeline of the {checkpoint.family} family takes"
        raise CheckpointError(where, got=f"class {name!r}", expected=expected, fix=FIX)
    return settings


def own_sampling(settings: Settings) -> Own:
    """Returns the sampler, options, levels and clipping that follow the scheduler's class."""
    return SCHEDULERS[settings.name](settings)


# one function for each kind of class


def _over_sigma(sampler: str) -> Callable[[Settings], Own]:
    """The classes of k-diffusion's samplers: levels over the N chosen timesteps."""

    def own(settings: Settings) -> Own:
        log_linear = settings.get("interpolation_type", "linear") == "log_linear"
        spread = settings.spread
        continuous = settings.get("timestep_type") == "continuous"
        log = continuous and settings.get("prediction_type") == "v_prediction"
        rounded = spread == "karras" and sampler.startswith("dpm2")
        levels = LevelSpec(
            spread="log_linear" if log_linear and spread == "none" else spread,
            span="training" if log_linear else "chosen",
            timesteps="log" if log else "nearest" if rounded else "exact",
            **_ends(settings),
        )
        plain = levels == LevelSpec() and settings.get("timestep_spacing") != "linspace"
        return Own(sampler=sampler, levels=None if plain else levels, clip=_clip(settings))

    return own


def _clip(settings: Settings) -> float | None:
    if not settings.get("clip_sample"):
        return None
    return settings.number("clip_sample_range", 1, 1e-6, 1e6)


def _ends(settings: Settings) -> dict[str, Any]:
    """Returns the ends of a spread that the config sets; every class reads them."""
    if settings.spread == "none":
        return {}
    given = [key for key in ENDS if settings.config.get(key) is not None]
    ends = {key: settings.number(key, 0, 1e-6, 1e6) for key in given}
    if len(ends) == len(ENDS) and ends["sigma_min"] >= ends["sigma_max"]:
        raise settings.refuse("sigma_min", f"below sigma_max, {ends['sigma_max']:g}")
    return ends


def _ddim(settings: Settings) -> Own:
    clipping = _clipping(settings)
    # the pipelines leave use_clipped_model_output at False
    options = {"keep_noise": 1.0} if clipping else {}
    return Own(sampler="ddim", options=options, levels=STRIDES, **clipping)


def _pndm(settings: Settings) -> Own:
    kind = settings.get("prediction_type")
    if kind not in ("epsilon", "v_prediction"):
        raise settings.refuse("prediction_type", "epsilon or v_prediction, as diffusers has")
    options = {} if settings.get("skip_prk_steps") else {"runge_kutta": 1.0}
    name = "pndm" if kind == "epsilon" else "pndm_v"
    return Own(sampler=name, options=options, levels=STRIDES)


def _ddpm(settings: Settings) -> Own:
    variance = settings.get("variance_type")
    if variance not in ("fixed_small", "fixed_small_log", "fixed_large"):
        raise settings.refuse("variance_type", "fixed_small, fixed_small_log or fixed_large")
    large = {"large": 1.0} if variance == "fixed_large" else {}
    return Own(sampler="ddpm", options=large, levels=LevelSpec(start="unit"), **_clipping(settings))


def _clipping(settings: Settings) -> dict[str, Any]:
    """Returns what is done to x_0: thresholding, else clipping."""
    if settings.get("thresholding"):
        ratio = settings.number("dynamic_thresholding_ratio", 0.995, 1e-6, 1)
        return {"thresholding": (ratio, settings.number("sample_max_value", 1, 1e-6, 1e6))}
    clip = _clip(settings)
    return {} if clip is None else {"clip": clip}


def _distilled(settings: Settings) -> LevelSpec:
    count = settings.number("num_train_timesteps", 1000, 1, 1e5)
    steps = int(settings.number("original_inference_steps", 50, 1, count))
    return LevelSpec(grid="distilled", original_steps=steps, start="unit")


def _lcm(settings: Settings) -> Own:
    scaling = float(settings.get("timestep_scaling"))
    options = {} if scaling == 10 else {"timestep_scaling": scaling}
    return Own(sampler="lcm", options=options, levels=_distilled(settings), **_clipping(settings))


def _tcd(settings: Settings) -> Own:
    # the pipelines pass eta = 0; the class does not read its clip_sample and thresholding
    return Own(sampler="tcd", options={"eta": 0.0}, levels=_distilled(settings))


def _intervals(settings: Settings) -> LevelSpec:
    """The classes of multistep solvers: N of N + 1 timesteps, or levels over all of training."""
    flow, spread = settings.flow, settings.spread
    even = settings.get("use_karras_sigmas") or settings.get("use_lu_lambdas")
    cosine = settings.name.startswith("DPMSolverMulti") and (
        settings.get("beta_schedule") == "squaredcos_cap_v2"
    )
    return LevelSpec(
        grid="open" if flow and settings.name.startswith("UniPC") else "intervals",
        spread=spread,
        span="chosen" if spread == "none" else "training",
        timesteps=_rounding(flow or spread != "none", nearest=bool(even) and not cosine),
        start="unit",
        **_ends(settings),
    )


def _rounding(placed: bool, *, nearest: bool) -> Rounding:
    """Returns how the timesteps of levels are rounded; chosen timesteps are whole as they are."""
    if nearest:
        return "nearest"
    return "down" if placed else "exact"


def _dpm_solver(settings: Settings) -> Own:
    """DPM-Solver multistep and single-step, of EDM too."""
    single = "Singlestep" in settings.name
    algorithm = settings.get("algorithm_type")
    algorithm = "dpmsolver++" if algorithm == "deis" else algorithm
    if settings.get("variance_type") in ("learned", "learned_range"):
        raise settings.refuse("variance_type", "None: a network that predicts no variance")
    known = ["dpmsolver++", "sde-dpmsolver++"]
    if not settings.name.startswith("EDM"):
        known += ["dpmsolver"] if single else ["dpmsolver", "sde-dpmsolver"]
    if algorithm not in known:
        raise settings.refuse("algorithm_type", f"one of {', '.join(known)}")
    order, noise, sde = int(settings.get("solver_order")), "++" not in algorithm, "sde" in algorithm
    if not 1 <= order <= 3:
        raise settings.refuse("solver_order", "1, 2 or 3")
    if noise and settings.get("final_sigmas_type") == "zero":
        raise settings.refuse("final_sigmas_type", f"sigma_min, as diffusers has for {algorithm}")
    if order == 3 and sde and (noise or settings.name.startswith("EDM")):
        raise settings.refuse("solver_order", f"1 or 2, as diffusers has for {algorithm}")
    levels = None if settings.name.startswith("EDM") else _intervals(settings)
    given = {
        "order": float(order),
        "sde": float(sde),
        "heun": float(settings.get("solver_type") == "heun"),
        "lower_order_final": float(bool(settings.get("lower_order_final"))),
        "euler_at_final": float(bool(settings.get("euler_at_final", False))),
    }
    usual = {"order": 2, "sde": 0, "heun": 0, "lower_order_final": 1, "euler_at_final": 0}
    options = {name: value for name, value in given.items() if value != usual[name]}
    plain = order == 2 and not given["heun"] and settings.get("final_sigmas_type") == "zero"
    if plain and not single:  # the usual ones have their own names
        name = "dpmpp_2m_sde" if sde else "dpmpp_2m"
        return Own(sampler=name, levels=levels, **_clipping(settings))
    name = f"dpm{'' if noise else 'pp'}_{'single' if single else 'multi'}step"
    return Own(sampler=name, options=options, levels=levels, **_clipping(settings))


def _deis(settings: Settings) -> Own:
    if settings.get("algorithm_type") not in ("deis", "dpmsolver", "dpmsolver++"):
        raise settings.refuse("algorithm_type", "deis")
    order = _order(settings)
    lower = {} if settings.get("lower_order_final") else {"lower_order_final": 0.0}
    options = {**order, **lower}
    return Own(sampler="deis", options=options, levels=_intervals(settings), **_clipping(settings))


def _order(settings: Settings) -> dict[str, float]:
    order = int(settings.get("solver_order"))
    if not 1 <= order <= 3:
        raise settings.refuse("solver_order", "1, 2 or 3")
    return {} if order == 2 else {"order": float(order)}


def _unipc(settings: Settings) -> Own:
    off = list(settings.get("disable_corrector") or [])
    if sorted(off) != list(range(len(off))):
        raise settings.refuse("disable_corrector", "[], [0], [0, 1] and so on")
    to_zero = settings.get("final_sigmas_type") == "zero"
    last_twice = settings.spread != "none" or settings.flow
    if not settings.get("lower_order_final") and (to_zero or last_twice):
        raise settings.refuse("lower_order_final", "True, as diffusers divides by 0 without it")
    if settings.get("solver_type") == "bh1" and to_zero:
        raise settings.refuse("solver_type", "bh2, or final_sigmas_type sigma_min: B is infinite")
    noise = not settings.get("predict_x0")
    if noise and (to_zero or last_twice):
        expected = "True, or final_sigmas_type sigma_min without use_*_sigmas"
        raise settings.refuse("predict_x0", expected)
    if noise and settings.get("thresholding"):
        raise settings.refuse("thresholding", "False with predict_x0 False")
    options = {
        **_order(settings),
        **({"bh": 1.0} if settings.get("solver_type") == "bh1" else {}),
        **({"correct_from": float(len(off))} if off else {}),
        **({} if settings.get("lower_order_final") else {"lower_order_final": 0.0}),
    }
    return Own(
        sampler="unipc_eps" if noise else "unipc",
        options=options,
        levels=_intervals(settings),
        **_clipping(settings),
    )


def _sa_solver(settings: Settings) -> Own:
    if settings.family == "flux":
        expected = "another class: diffusers' Flux pipeline passes mu, which it does not take"
        raise settings.refuse("_class_name", expected)
    if settings.get("variance_type") in ("learned", "learned_range"):
        raise settings.refuse("variance_type", "None: a network that predicts no variance")
    algorithm = settings.get("algorithm_type")
    noise = algorithm == "noise_prediction"
    if not noise and algorithm != "data_prediction":
        raise settings.refuse("algorithm_type", "data_prediction or noise_prediction")
    if noise and settings.flow:
        raise settings.refuse("algorithm_type", "data_prediction with use_flow_sigmas")
    if noise and settings.get("thresholding"):
        raise settings.refuse("thresholding", "False with algorithm_type noise_prediction")
    orders = {"order": "predictor_order", "corrector_order": "corrector_order"}
    given = {name: settings.number(key, 2, 1, 4) for name, key in orders.items()}
    for name, key in orders.items():
        if given[name] % 1:
            raise settings.refuse(key, "1, 2, 3 or 4")
    given["lower_order_final"] = float(bool(settings.get("lower_order_final")))
    usual = {"order": 2, "corrector_order": 2, "lower_order_final": 1}
    return Own(
        sampler="sa_solver_eps" if noise else "sa_solver",
        options={name: value for name, value in given.items() if value != usual[name]},
        levels=_intervals(settings),
        **_clipping(settings),
    )


def _flow(sampler: str) -> Callable[[Settings], Own]:
    """The flow-matching classes: levels over the N chosen ones."""

    def own(settings: Settings) -> Own:
        again = settings.get("stochastic_sampling", False)
        levels = LevelSpec(spread=settings.spread, start="unit", **_ends(settings))
        plain = levels == LevelSpec(start="unit")
        return Own(sampler="lcm" if again else sampler, levels=None if plain else levels)

    return own


SCHEDULERS: Mapping[str, Callable[[Settings], Own]] = {
    "EulerDiscreteScheduler": _over_sigma("euler"),
    "EulerAncestralDiscreteScheduler": _over_sigma("euler_a"),
    "HeunDiscreteScheduler": _over_sigma("heun"),
    "KDPM2DiscreteScheduler": _over_sigma("dpm2"),
    "KDPM2AncestralDiscreteScheduler": _over_sigma("dpm2_a"),
    "LMSDiscreteScheduler": _over_sigma("lms"),
    "DPMSolverSDEScheduler": _over_sigma("dpmpp_sde"),
    "DDIMScheduler": _ddim,
    "DDIMParallelScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "DDPMParallelScheduler": _ddpm,
    "PNDMScheduler": _pndm,
    "LCMScheduler": _lcm,
    "TCDScheduler": _tcd,
    "DPMSolverMultistepScheduler": _dpm_solver,
    "DPMSolverSinglestepScheduler": _dpm_solver,
    "DEISMultistepScheduler": _deis,
    "UniPCMultistepScheduler": _unipc,
    "SASolverScheduler": _sa_solver,
    "EDMEulerScheduler": lambda _: Own(sampler="euler"),
    "EDMDPMSolverMultistepScheduler": _dpm_solver,
    "FlowMatchEulerDiscreteScheduler": _flow("flow_euler"),
    "FlowMatchHeunDiscreteScheduler": _flow("flow_heun"),
    "FlowMatchLCMScheduler": _flow("lcm"),
}
