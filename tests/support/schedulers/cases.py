"""Scheduler configs: every class that the pipelines take, with every option that changes a step."""

from __future__ import annotations

from itertools import product

SPACINGS = ("leading", "trailing", "linspace")
SDXL = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
OVER_SIGMA = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverSDEScheduler",
)
EULER, HEUN = OVER_SIGMA[0], OVER_SIGMA[2]
DPM, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
SA = "SASolverScheduler"
DEIS, UNIPC = "DEISMultistepScheduler", "UniPCMultistepScheduler"
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
FLOW, FLOW_LCM = "FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"
SPREADS = [{f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")]
CLIPPED = (
    {"clip_sample": False},
    {"clip_sample": True},
    {"clip_sample_range": 0.6, "timestep_spacing": "trailing"},
    {"thresholding": True, "sample_max_value": 1.5},
)
TO_SIGMA_MIN = {"final_sigmas_type": "sigma_min"}


def sdxl(name, **changes):
    return "sdxl", {"_class_name": name, **SDXL, **changes}


def over_sigma():
    for name, spacing in product(OVER_SIGMA, SPACINGS):
        yield sdxl(name, timestep_spacing=spacing)
        yield sdxl(name, timestep_spacing=spacing, prediction_type="v_prediction")
    for name, spread in product(OVER_SIGMA, SPREADS):
        if name != "EulerAncestralDiscreteScheduler":
            yield sdxl(name, timestep_spacing="leading", **spread)
    yield sdxl(EULER, interpolation_type="log_linear", timestep_spacing="leading")
    yield sdxl(EULER, interpolation_type="log_linear", **SPREADS[0])
    yield sdxl(EULER, **TO_SIGMA_MIN)
    yield sdxl(EULER, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    yield sdxl(EULER, trained_betas=[0.001 + 1e-5 * t for t in range(1000)])
    video = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    yield sdxl(EULER, **video, **SPREADS[0], sigma_min=0.002, sigma_max=700.0)
    yield sdxl(HEUN, clip_sample=True, clip_sample_range=2.0)
    yield sdxl(HEUN, **SPREADS[0], sigma_min=0.1, sigma_max=8.0)  # hidden keys, which it reads


def whole_timesteps():
    for spacing in SPACINGS:
        unclipped = {"clip_sample": False, "timestep_spacing": spacing}
        yield sdxl("DDIMScheduler", **unclipped, set_alpha_to_one=False)
        yield sdxl("DDIMScheduler", **unclipped, prediction_type="v_prediction")
        yield sdxl("DDPMScheduler", timestep_spacing=spacing)
        yield sdxl("DDPMScheduler", **unclipped, variance_type="fixed_large")
    yield sdxl("DDPMScheduler", thresholding=True, sample_max_value=1.5)
    in_v = {"prediction_type": "v_prediction", "set_alpha_to_one": True}
    for spacing, skip, more in product(SPACINGS, (True, False), ({}, in_v)):
        yield sdxl("PNDMScheduler", skip_prk_steps=skip, timestep_spacing=spacing, **more)
    for name, clipping in product(("DDIM", "DDIMParallel", "DDPMParallel"), CLIPPED):
        for kind in ("epsilon", "v_prediction"):
            yield sdxl(f"{name}Scheduler", prediction_type=kind, **clipping)
    yield sdxl("LCMScheduler")
    yield sdxl("LCMScheduler", timestep_scaling=5.0, original_inference_steps=100, clip_sample=True)
    yield sdxl("LCMScheduler", thresholding=True, sample_max_value=2.0)
    yield sdxl("TCDScheduler")
    yield sdxl("TCDScheduler", clip_sample=True)


def multistep():
    for name, spacing in product((DPM, DEIS, UNIPC), SPACINGS):
        yield sdxl(name, timestep_spacing=spacing)
    for name, spread in product((DPM, SINGLE, DEIS, UNIPC), SPREADS):
        yield sdxl(name, **spread)
    yield sdxl(DPM, use_lu_lambdas=True)
    yield sdxl(DPM, use_karras_sigmas=True, beta_schedule="squaredcos_cap_v2")
    algorithms = ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver")
    for name, kind, order, solver in product(
        (DPM, SINGLE), algorithms, (1, 2, 3), ("midpoint", "heun")
    ):
        if kind == "sde-dpmsolver" and (order == 3 or name == SINGLE):
            continue  # diffusers has none
        final = {} if "++" in kind else TO_SIGMA_MIN
        options = {"algorithm_type": kind, "solver_order": order, "solver_type": solver}
        yield sdxl(name, **options, **final)
    yield sdxl(DPM, **TO_SIGMA_MIN, euler_at_final=True, lower_order_final=False)
    yield sdxl(DPM, **TO_SIGMA_MIN, lower_order_final=False)
    yield sdxl(DPM, thresholding=True, sample_max_value=2.0)
    yield sdxl(SINGLE, **TO_SIGMA_MIN, lower_order_final=False)
    for name, order in product((DEIS, UNIPC), (1, 3)):
        yield sdxl(name, solver_order=order)
    yield sdxl(DEIS, lower_order_final=False)
    yield sdxl(DEIS, thresholding=True, sample_max_value=2.0)
    yield sdxl(UNIPC, disable_corrector=[0, 1])
    for options in (
        {"solver_type": "bh1"},
        {"lower_order_final": False},
        {"predict_x0": False},
        {"predict_x0": False, "solver_order": 3, "solver_type": "bh1"},
        SPREADS[0],
    ):
        yield sdxl(UNIPC, **options, **TO_SIGMA_MIN)
    yield sdxl(UNIPC, **SPREADS[0], sigma_min=0.05, sigma_max=10.0)


def stochastic_adams():
    noise = {"algorithm_type": "noise_prediction"}
    for spacing in SPACINGS:
        yield sdxl(SA, timestep_spacing=spacing)
    for spread in SPREADS:
        yield sdxl(SA, **spread)
    for order, corrector, more in ((1, 3, {}), (4, 4, {}), (2, 2, noise), (3, 1, noise)):
        yield sdxl(SA, predictor_order=order, corrector_order=corrector, **more)
    yield sdxl(SA, prediction_type="v_prediction", lower_order_final=False)
    yield sdxl(SA, thresholding=True, sample_max_value=1.5)
    flows = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    yield "sd35", {"_class_name": SA, **flows}


def edm():
    for name, curve, kind in product(EDM, ("karras", "exponential"), ("epsilon", "v_prediction")):
        yield "sdxl", {"_class_name": name, "sigma_schedule": curve, "prediction_type": kind}
    for options in (
        {"solver_order": 3},
        {"solver_order": 2, "solver_type": "heun"},
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "sde-dpmsolver++", **TO_SIGMA_MIN},
        {"rho": 5.0, "sigma_data": 1.0, "sigma_max": 40.0, "sigma_min": 0.01},
    ):
        yield "sdxl", {"_class_name": EDM[1], **options}


def flow():
    for family, options in product(
        ("sd35", "flux"),
        (
            {"shift": 3.0},
            {"use_dynamic_shifting": True},
            {"use_dynamic_shifting": True, "time_shift_type": "linear"},
            {"shift": 3.0, "shift_terminal": 0.1},
            *({"shift": 3.0, **spread} for spread in SPREADS),
        ),
    ):
        yield family, {"_class_name": FLOW, **options}
        yield family, {"_class_name": FLOW, "stochastic_sampling": True, **options}
        yield family, {"_class_name": FLOW_LCM, **options}
    yield "sd35", {"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 3.0}
    flows = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    for name, options in product((DPM, SINGLE, DEIS, UNIPC), ({}, {"solver_order": 3})):
        yield "sdxl", {"_class_name": name, **flows, "flow_shift": 2.0, **options}
        yield "sd35", {"_class_name": name, **flows, "flow_shift": 3.0, **options}
        yield "flux", {"_class_name": name, **flows, "use_dynamic_shifting": True, **options}
    sde = {"algorithm_type": "sde-dpmsolver++"}
    yield "sd35", {"_class_name": DPM, **flows, "flow_shift": 3.0, **sde}
    yield "sd35", {"_class_name": UNIPC, **flows, "shift_terminal": 0.1, **TO_SIGMA_MIN}


CASES = [*over_sigma(), *whole_timesteps(), *multistep(), *stochastic_adams(), *edm(), *flow()]


def label(case):
    """A case's name: the family, the class and what is not SDXL's."""
    family, config = case
    usual = {**SDXL, "_class_name": config["_class_name"]}
    short = {key: value for key, value in config.items() if usual.get(key) != value}
    words = [f"{key}={str(value)[:24]}" for key, value in short.items()]
    return " ".join([family, config["_class_name"], *words])
