"""Every sampler's whole trajectory against diffusers' scheduler of the same algorithm.

The reference's alpha-bar is accumulated in float64 (diffusers' float32 products are off by 1e-5 of
sigma), and its noise is injected.
"""

from __future__ import annotations

import sys

import diffusers
import numpy as np
import pytest
import torch

from eri_runtime import SAMPLERS, make_table
from eri_runtime.spec import ScheduleSpec
from tests.oracles import network, trajectory

STEPS = [1, 2, 7, 20]
SHAPE = (2, 4, 5, 3)
TOLERANCE = 1e-5
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "flow": "flow_prediction"}
VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def draws(draw, shape=SHAPE[1:]):
    return np.random.default_rng(draw).standard_normal((SHAPE[0], *shape), dtype=np.float32)


def ours(name, spec, steps, sigmas="default", net=network, **options):
    sampler = SAMPLERS[name]
    schedule = sampler.schedule(spec, steps, 64, sigmas)
    table = make_table(sampler, schedule, spec, options=options)
    x = np.float32(table.scale) * draws(0)
    return table, trajectory(table, x, draws, net)


def theirs(scheduler, steps, scale, monkeypatch, net=network):
    """Every x of diffusers' loop from unit noise times `scale`, in its own scale."""
    count = 0

    def injected(*args, **kwargs):
        nonlocal count
        count += 1
        return torch.from_numpy(draws(count))

    module = sys.modules[type(scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", injected)
    if hasattr(scheduler, "alphas_cumprod"):
        scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(draws(0)) * scale
    states = []
    for t in scheduler.timesteps:
        scaled = x
        if hasattr(scheduler, "scale_model_input"):
            scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(net(scaled, float(t)), t, x, return_dict=False)[0]
        states.append(x.numpy())
    return states


def assert_close(mine, reference, tolerance=TOLERANCE):
    assert len(mine) == len(reference)
    for a, b in zip(mine, reference, strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def to_vp(table, states):
    """k-diffusion's x / alpha as x: each state is at the sigma of the evaluation that follows."""
    return [alpha * x for alpha, x in zip(table.points.alpha[1:], states, strict=True)]


K_DIFFUSION = {
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "dpm2": diffusers.KDPM2DiscreteScheduler,
    "dpm2_a": diffusers.KDPM2AncestralDiscreteScheduler,
}


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # diffusers' KDPM2
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("name", K_DIFFUSION)
def test_a_sampler_over_sigma_is_diffusers(name, prediction, steps, monkeypatch):
    spec = ScheduleSpec(kind="vp", prediction=prediction, spacing="trailing")
    table, mine = ours(name, spec, steps)
    config = VP | {"timestep_spacing": "trailing", "prediction_type": PREDICTIONS[prediction]}
    scale = table.scale / table.points.alpha[0]
    reference = theirs(K_DIFFUSION[name](**config), steps, scale, monkeypatch)
    assert_close(mine, to_vp(table, reference))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_ddpm_is_diffusers(prediction, steps, monkeypatch):
    """With the `leading` spacing: elsewhere diffusers' DDPM steps to a t that is none of its N."""
    spec = ScheduleSpec(kind="vp", prediction=prediction)
    _, mine = ours("ddpm", spec, steps)
    config = VP | {"steps_offset": 1, "prediction_type": PREDICTIONS[prediction]}
    scheduler = diffusers.DDPMScheduler(**config, clip_sample=False)
    assert_close(mine, theirs(scheduler, steps, 1.0, monkeypatch))


MULTISTEP = {
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}, {}),
    "dpmpp_2m_sde": (
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++"},
        {},
    ),
    "unipc": (diffusers.UniPCMultistepScheduler, {}, {}),
    "unipc_3": (diffusers.UniPCMultistepScheduler, {"solver_order": 3}, {"order": 3}),
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("case", MULTISTEP)
def test_a_multistep_sampler_is_diffusers(case, prediction, steps, monkeypatch):
    cls, extra, options = MULTISTEP[case]
    spec = ScheduleSpec(kind="vp", prediction=prediction, spacing="trailing")
    table, mine = ours(case.removesuffix("_3"), spec, steps, **options)
    config = VP | {"timestep_spacing": "trailing", "prediction_type": PREDICTIONS[prediction]}
    scheduler = cls(**config, **extra, final_sigmas_type="zero")
    assert_close(mine, theirs(scheduler, steps, table.scale, monkeypatch))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_a_distilled_sampler_is_diffusers(name, prediction, steps, monkeypatch):
    final = "sigma_min" if name == "tcd" else "zero"
    spec = ScheduleSpec(kind="vp", prediction=prediction, final=final)
    _, mine = ours(name, spec, steps)
    cls = {"lcm": diffusers.LCMScheduler, "tcd": diffusers.TCDScheduler}[name]
    scheduler = cls(**VP, prediction_type=PREDICTIONS[prediction])
    assert_close(mine, theirs(scheduler, steps, 1.0, monkeypatch))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_heun_is_diffusers(shift, steps, monkeypatch):
    spec = ScheduleSpec(kind="flow", prediction="flow", spacing="linspace", shift=shift)
    _, mine = ours("flow_heun", spec, steps)
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
    # from sigma 1 to 0.001 at once: diffusers divides a float32 rounding by the 0.001
    tolerance = 1e-4 if steps == 2 else TOLERANCE
    assert_close(mine, theirs(scheduler, steps, 1.0, monkeypatch), tolerance)


def timeless(x, t):
    """diffusers' flow solvers round the clock of a flow to whole numbers; this cannot tell."""
    return network(x, 300.0)


FLOW_MULTISTEP = {
    "dpmpp_2m": MULTISTEP["dpmpp_2m"],
    "dpmpp_2m_sde": MULTISTEP["dpmpp_2m_sde"],
    "unipc": MULTISTEP["unipc"],
    "unipc_3": MULTISTEP["unipc_3"],
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("case", FLOW_MULTISTEP)
def test_a_multistep_sampler_on_a_flow_is_diffusers(case, steps, monkeypatch):
    """At diffusers' levels, which start at 0.999 where ours start at 1."""
    cls, extra, options = FLOW_MULTISTEP[case]
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    scheduler = cls(**extra, **flow, final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    levels = scheduler.sigmas[:-1].tolist()
    spec = ScheduleSpec(kind="flow", prediction="flow", shift=3.0)
    table, mine = ours(case.removesuffix("_3"), spec, steps, levels, timeless, **options)
    assert_close(mine, theirs(scheduler, steps, table.scale, monkeypatch, timeless))


@pytest.mark.parametrize("steps", STEPS)
def test_lcm_on_a_flow_draws_fresh_noise_at_each_level(steps):
    """x' = (1 − sigma')·x_0 + sigma'·n, the re-noising of diffusers' FlowMatchLCM."""
    spec = ScheduleSpec(kind="flow", prediction="flow", spacing="linspace", shift=3.0)
    table, mine = ours("lcm", spec, steps)
    x = draws(0)
    for k, state in enumerate(mine):
        at, after = table.points[k], table.points[k + 1].sigma
        x_0 = x - at.sigma * network(x, at.t)
        x = (1 - after) * x_0 + after * draws(k + 1)
        assert np.abs(state - x).max() <= TOLERANCE * np.abs(x).max()
