"""The cases: every sampler on every kind of schedule it takes, with every way of spacing it."""

from __future__ import annotations

import dataclasses
import importlib.util
from itertools import product

import numpy as np

from eri_runtime.bundle.spec import ScheduleSpec
from tests.support.references.case import STEPS, Case
from tests.support.references.schedulers import Diffusers

SCIPY = importlib.util.find_spec("scipy") is not None  # diffusers' beta sigmas and LMS need it
CURVES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "trailing", "linspace")
NAMED = ("karras", "exponential", "beta", "simple")
RESPACED = ("karras", "exponential", *(["beta"] if SCIPY else []))  # diffusers has no simple
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SD3 = ScheduleSpec(kind="flow", prediction="flow", spacing="linspace", shift=3.0)
OVER_SIGMA = {
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm2": "KDPM2DiscreteScheduler",
    "dpm2_a": "KDPM2AncestralDiscreteScheduler",
    **({"lms": "LMSDiscreteScheduler"} if SCIPY else {}),
}
AT_ONCE = (
    "in two steps it goes from the first level to the last at once, and divides a rounding by it"
)
SLOPES = "slopes are added to x/alpha here too, and sigma/alpha is 15, or 2e4 of the cosine curve"
MULTISTEP = {
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def vp(prediction="eps", **fields):
    return ScheduleSpec(kind="vp", prediction=prediction, **{"spacing": "trailing", **fields})


def config(spec, **more):
    """A scheduler's config for a `vp` spec."""
    zero = {"rescale_betas_zero_snr": True} if spec.zero_terminal_snr else {}
    return {
        "beta_start": spec.beta_start,
        "beta_end": spec.beta_end,
        "beta_schedule": spec.beta_curve,
        "num_train_timesteps": spec.num_train_timesteps,
        "prediction_type": PREDICTIONS[spec.prediction],
        "timestep_spacing": spec.spacing,
        "steps_offset": spec.steps_offset,
        **zero,
        **more,
    }


def listed(steps):
    """A flow's levels from 0.999 on."""
    return [0.999 - 0.94 * i / steps for i in range(steps)]


def over_sigma(sampler, spec, sigmas="default", **more):
    """diffusers' scheduler that keeps x/alpha."""
    spaced = {} if sigmas == "default" else {f"use_{sigmas}_sigmas": True}
    reference = Diffusers(
        name=OVER_SIGMA[sampler],
        config=config(spec, **spaced),
        over_alpha=True,
        own_start=True,
        rounds="it keeps x/alpha, and a rounding of that is one of sigma/alpha times x_0",
    )
    case = {**fewer_digits(sampler, spec, sigmas), **more}
    return Case(sampler=sampler, spec=spec, reference=reference, sigmas=sigmas, **case)


def fewer_digits(sampler, spec, sigmas):
    """Where float32 itself has fewer digits than the tolerance asks for."""
    if sampler in ("heun", "dpm2_a") and spec.spacing == "linspace" and sigmas == "default":
        if spec.beta_curve == "squaredcos_cap_v2":
            return {"steps": (7, 20)}  # from 2e4 to 0.006 at once no digit is left in float32
        return {"tolerance": 1e-4, "reason": AT_ONCE}
    if sampler == "lms" and spec.prediction == "v" and spec.spacing != "leading":
        cosine = spec.beta_curve == "squaredcos_cap_v2"
        return {"tolerance": 1e-2 if cosine else 3e-5, "reason": SLOPES}
    return {}


def sigma_cases():
    for sampler, curve, spacing, p in product(OVER_SIGMA, CURVES, SPACINGS, PREDICTIONS):
        too_far = sampler.startswith("dpm2") and curve == CURVES[2] and spacing != "leading"
        if (p != "x0" or sampler == "euler") and not too_far:  # the others take no x_0
            yield over_sigma(sampler, vp(p, beta_curve=curve, spacing=spacing))
    for sampler, sigmas, p in product(OVER_SIGMA, RESPACED, ("eps", "v")):
        if sampler != "euler_a":
            yield over_sigma(sampler, vp(p), sigmas)
            yield over_sigma(sampler, vp(p, spacing="leading"), sigmas)
    for sampler in ("euler", "euler_a"):
        yield over_sigma(sampler, vp("v", zero_terminal_snr=True))
    yield over_sigma("euler", vp("eps", num_train_timesteps=400))
    yield over_sigma("euler", vp("eps", beta_start=0.0001, beta_end=0.02, beta_curve="linear"))


def ddim_case(spec, eta=0.0, **more):
    to_one = {"set_alpha_to_one": spec.final == "zero", "clip_sample": False}
    reference = Diffusers(
        name="DDIMScheduler", config=config(spec, **to_one), step={"eta": eta} if eta else {}
    )
    return Case(sampler="ddim", spec=spec, reference=reference, options={"eta": eta}, **more)


def ddim_cases():
    for curve, p, final in product(CURVES, PREDICTIONS, ("zero", "sigma_min")):
        yield ddim_case(vp(p, beta_curve=curve, final=final, spacing="leading"))
    for eta, p in product((0.5, 1.0), PREDICTIONS):
        yield ddim_case(vp(p, final="sigma_min", spacing="leading"), eta)
    # elsewhere its next t is t − T/N and none of its own: 7 steps of 1000 do not divide
    yield ddim_case(vp("v", final="sigma_min", zero_terminal_snr=True), steps=(1, 2, 20))
    yield ddim_case(vp("eps", final="sigma_min"), steps=(1, 2, 20))
    for curve, spacing, p in product(CURVES, SPACINGS, PREDICTIONS):
        spec = vp(p, beta_curve=curve, spacing=spacing)
        reference = Diffusers(name="DDPMScheduler", config=config(spec, clip_sample=False))
        yield Case(sampler="ddpm", spec=spec, reference=reference)


def multistep(sampler, spec, sigmas="default", **more):
    cls, extra = MULTISTEP[sampler]
    options = more.pop("options", {})
    order = {"solver_order": options["order"]} if "order" in options else {}
    spaced = {f"use_{sigmas}_sigmas": True} if sigmas in RESPACED else {}
    if spec.kind == "flow":
        fields = {"prediction_type": "flow_prediction", "flow_shift": spec.shift}
        fields = {**fields, "use_flow_sigmas": True, **extra, **order}
    else:
        fields = config(spec, **extra, **order, **spaced)
    reference = Diffusers(name=cls, config={**fields, "final_sigmas_type": "zero"})
    levels = "reference" if spaced else sigmas
    return Case(
        sampler=sampler, spec=spec, reference=reference, sigmas=levels, options=options, **more
    )


ORDERS = [(name, {}) for name in MULTISTEP] + [("unipc", {"order": n}) for n in (1, 3)]


def multistep_cases():
    for (sampler, options), curve, p in product(ORDERS, CURVES, PREDICTIONS):
        yield multistep(sampler, vp(p, beta_curve=curve), options=options)
    for (sampler, options), p in product(ORDERS, ("eps", "v")):
        for spacing in ("leading", "linspace"):  # of N + 1 points there, so at its levels
            spec = vp(p, spacing=spacing)
            yield multistep(sampler, spec, "reference", options=options)
        for sigmas in RESPACED:  # whose clock it rounds
            yield multistep(sampler, vp(p), sigmas, options=options, timeless=True)
    for sampler, options in ORDERS:
        yield multistep(sampler, vp("v", zero_terminal_snr=True), options=options)
        for shift in (1.0, 3.0):  # from 0.999, and with the clock rounded
            spec = ScheduleSpec(kind="flow", prediction="flow", shift=shift)
            yield multistep(sampler, spec, "reference", options=options, timeless=True)


EXPONENTIALS = "its coefficients are differences of float32 exponentials"
ALWAYS_LEAST = ("DEISMultistepScheduler", "SASolverScheduler")  # they have no final_sigmas_type
# solvers that diffusers ends at the smallest level of training: sampler, class, config and options
TO_LEAST = [
    *(("deis", "DEISMultistepScheduler", {"solver_order": n}, {"order": n}) for n in (1, 2, 3)),
    *(
        (
            "unipc_eps",
            "UniPCMultistepScheduler",
            {"solver_order": n, "predict_x0": False},
            {"order": n},
        )
        for n in (1, 2, 3)
    ),
    *(
        (f"dpm{pp}_{kind}step", f"DPMSolver{cls}stepScheduler", *given)
        for (pp, algorithm), (kind, cls) in product(
            (("pp", "dpmsolver++"), ("", "dpmsolver")),
            (("multi", "Multi"), ("single", "Single")),
        )
        for n in (1, 2, 3)
        for given in [({"solver_order": n, "algorithm_type": algorithm}, {"order": n})]
    ),
    *(
        (sampler, "SASolverScheduler", {**orders, "algorithm_type": algorithm}, options)
        for sampler, algorithm in (
            ("sa_solver", "data_prediction"),
            ("sa_solver_eps", "noise_prediction"),
        )
        for p, c in ((2, 2), (1, 3), (3, 1), (4, 4))
        for orders, options in [
            ({"predictor_order": p, "corrector_order": c}, {"order": p, "corrector_order": c})
        ]
    ),
]


def solver_cases():
    for (sampler, name, more, options), p in product(TO_LEAST, ("eps", "v")):
        single = "single" in sampler  # it has no spacing but `linspace`, of N + 1 points
        spec = vp(p, final="sigma_min", spacing="linspace" if single else "trailing")
        final = {} if name in ALWAYS_LEAST else {"final_sigmas_type": "sigma_min"}
        fields = {**config(spec), **final, **more}
        if single:
            del fields["timestep_spacing"], fields["steps_offset"]
            fields["lower_order_final"] = True
        reference = Diffusers(name=name, config=fields, rounds=EXPONENTIALS)
        levels = {"sigmas": "reference", "timeless": True} if single else {}
        yield Case(sampler=sampler, spec=spec, reference=reference, options=options, **levels)


def dpm_flow_cases():
    flows = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    flows |= {"final_sigmas_type": "zero", "lower_order_final": True}
    for kind, shift, order in product(("Multi", "Single"), (1.0, 3.0), (1, 2, 3)):
        fields = {**flows, "flow_shift": shift, "solver_order": order}
        reference = Diffusers(name=f"DPMSolver{kind}stepScheduler", config=fields)
        yield Case(
            sampler=f"dpmpp_{kind.lower()}step",
            spec=ScheduleSpec(kind="flow", prediction="flow", shift=shift),
            reference=reference,
            sigmas="reference",  # from 0.999, and with the clock rounded
            options={"order": order},
            timeless=True,
        )


def pndm_cases():
    samplers = (("pndm", "eps"), ("pndm_v", "v"))
    for rk, (sampler, p), final in product((0, 1), samplers, ("zero", "sigma_min")):
        spec = vp(p, spacing="leading", final=final)
        fields = config(spec, set_alpha_to_one=final == "zero", skip_prk_steps=not rk)
        yield Case(
            sampler=sampler,
            spec=spec,
            reference=Diffusers(name="PNDMScheduler", config=fields),
            options={"runge_kutta": rk},
            steps=(5, 20) if rk else STEPS,  # diffusers' needs four
        )


def distilled_cases():
    for curve, p, eta in product(CURVES, PREDICTIONS, (None, 0.0, 0.3, 1.0)):
        final = "zero" if eta is None else "sigma_min"
        spec = vp(p, beta_curve=curve, final=final, spacing="leading")
        name, sampler = ("LCMScheduler", "lcm") if eta is None else ("TCDScheduler", "tcd")
        options, step = ({}, {}) if eta is None else ({"eta": eta}, {"eta": eta})
        reference = Diffusers(name=name, config=config(spec), step=step)
        yield Case(sampler=sampler, spec=spec, reference=reference, options=options)


def flow_euler(spec, sigmas="default", sampler="flow_euler", **config):
    spaced = {f"use_{sigmas}_sigmas": True} if sigmas in RESPACED else {}
    fields = {"shift": spec.shift, **spaced, **config}
    reference = Diffusers(name="FlowMatchEulerDiscreteScheduler", config=fields)
    return Case(sampler=sampler, spec=spec, sigmas=sigmas, reference=reference)


def flow_cases():
    for shift, sigmas in product((1.0, 3.0), ("default", *RESPACED)):
        yield flow_euler(dataclasses.replace(SD3, shift=shift), sigmas)
    flux = ScheduleSpec(kind="flow", prediction="flow", spacing="trailing", dynamic_shift=True)
    for tokens, sampler in product((16, 256, 4096), ("flow_euler", "lcm")):
        mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256)
        reference = Diffusers(
            name="FlowMatchEulerDiscreteScheduler",
            config={"use_dynamic_shifting": True, "stochastic_sampling": sampler == "lcm"},
            sigmas=lambda steps: np.linspace(1.0, 1 / steps, steps),
            mu=mu,
        )
        yield Case(sampler=sampler, spec=flux, reference=reference, tokens=tokens)
    for sampler, again in (("flow_euler", False), ("lcm", True)):
        config = {"stochastic_sampling": again}
        reference = Diffusers(name="FlowMatchEulerDiscreteScheduler", config=config, sigmas=listed)
        yield Case(sampler=sampler, spec=SD3, reference=reference, sigmas=listed)
        yield flow_euler(SD3, sampler=sampler, **config)
    for shift in (1.0, 3.0):
        reference = Diffusers(name="FlowMatchHeunDiscreteScheduler", config={"shift": shift})
        spec = dataclasses.replace(SD3, shift=shift)
        more = {"tolerance": 1e-4, "reason": AT_ONCE}
        yield Case(sampler="flow_heun", spec=spec, reference=reference, **more)


CHURN = {"s_churn": 4.0, "s_tmin": 0.1, "s_tmax": 50.0, "s_noise": 1.003}
# samplers on the kinds where diffusers has none of them, or none with these options
FORMULA_VP = [
    ("lms", {}),
    *(("lms", {"order": n}) for n in (1, 2, 3)),
    ("dpmpp_2s_a", {}),
    ("dpmpp_2s_a", {"eta": 0.5, "s_noise": 1.1}),
    ("dpmpp_2s_a", {"eta": 0.0}),
    ("dpmpp_sde", {}),
    ("dpmpp_sde", {"eta": 0.5, "s_noise": 1.1}),
    ("dpmpp_sde", {"eta": 0.0}),
    ("dpmpp_3m_sde", {}),
    ("dpmpp_3m_sde", {"eta": 0.5, "s_noise": 1.1}),
    ("dpmpp_3m_sde", {"eta": 0.0}),
    ("dpmpp_2m_sde", {"eta": 0.5, "s_noise": 1.1}),
    ("euler_a", {"eta": 0.5, "s_noise": 1.1}),
    ("dpm2_a", {"eta": 0.5}),
    ("heun", CHURN),
]
FORMULA_FLOW = [
    *(("lms", {"order": n}) for n in (1, 2, 3, 4)),
    *((name, {}) for name in ("euler_a", "dpm2", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s_a")),
    *((name, {}) for name in ("dpmpp_sde", "dpmpp_3m_sde", "flow_heun", "flow_euler")),
    *((name, {"eta": 0.0}) for name in ("euler_a", "dpmpp_2s_a", "dpmpp_sde", "dpmpp_3m_sde")),
]
FORMULA_FLOW_PARTLY = [
    (name, {"eta": 0.5, "s_noise": 1.1})
    for name in ("euler_a", "dpmpp_2m_sde", "dpmpp_2s_a", "dpmpp_sde", "dpmpp_3m_sde")
]


def formula_cases():
    levels = ("default", *NAMED)
    for (sampler, options), sigmas, p in product(FORMULA_VP, levels, ("eps", "v")):
        yield Case(sampler=sampler, spec=vp(p), options=options, sigmas=sigmas)
    for (sampler, options), sigmas in product(FORMULA_FLOW, (*levels, listed)):
        yield Case(sampler=sampler, spec=SD3, options=options, sigmas=sigmas)
    for sampler, options in FORMULA_FLOW_PARTLY:
        yield Case(sampler=sampler, spec=SD3, options=options, sigmas=listed)
    for sampler in ("euler", "heun", "dpm2", "dpm2_a", "euler_a", "dpmpp_2m", "dpmpp_2m_sde"):
        for sigmas in ("simple", "beta"):
            yield Case(sampler=sampler, spec=vp("eps"), sigmas=sigmas)


CASES = [
    *sigma_cases(),
    *ddim_cases(),
    *multistep_cases(),
    *solver_cases(),
    *dpm_flow_cases(),
    *pndm_cases(),
    *distilled_cases(),
    *flow_cases(),
    *formula_cases(),
]
