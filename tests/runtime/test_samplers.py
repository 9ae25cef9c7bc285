"""Whole trajectories against diffusers' schedulers, with a network that is non-linear in x."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from eri_runtime import SAMPLERS, make_schedule, make_table
from eri_runtime.errors import UnknownNameError, UsageError
from eri_runtime.samplers import find_sampler
from eri_runtime.spec import ScheduleSpec
from tests.oracles import network, trajectory

STEPS = [1, 2, 7, 20]
SHAPE = (2, 4, 5, 3)
# diffusers accumulates alpha-bar in float32: 1000 products leave about 1e-5 of sigma, and of the
# cosine schedule's first sigma (1 − alpha-bar is 4e-5) only three digits
TOLERANCE = 3e-5
COSINE_TOLERANCE = 3e-4
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def initial_noise():
    return np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)


def ours(spec, sampler, steps, *, tokens=64, noise=None, **options):
    sampler = SAMPLERS[sampler]
    schedule = make_schedule(spec, steps, tokens, whole_t=sampler.whole_t)
    table = make_table(sampler, schedule, spec, options=options)
    x = table.scale * initial_noise()
    return trajectory(table, x, noise)


def theirs(scheduler, steps, **options):
    """Every x of diffusers' loop, in its own scale."""
    draws = options.pop("draws", None)
    scheduler.set_timesteps(**({"num_inference_steps": steps} | options))
    scale = getattr(scheduler, "init_noise_sigma", 1.0)
    x = torch.from_numpy(initial_noise()) * scale
    states = []
    for i, t in enumerate(scheduler.timesteps):
        scaled = x
        if hasattr(scheduler, "scale_model_input"):
            scaled = scheduler.scale_model_input(x, t)
        extra = {} if draws is None else {"eta": 1.0, "variance_noise": torch.from_numpy(draws[i])}
        x = scheduler.step(network(scaled, float(t)), t, x, **extra).prev_sample
        states.append(x.numpy())
    return states


def to_vp(scheduler, states):
    """diffusers' Euler keeps x / alpha; ours keeps x."""
    sigmas = [float(sigma) for sigma in scheduler.sigmas[1:]]
    return [x / np.sqrt(1 + s**2) for x, s in zip(states, sigmas, strict=True)]


def assert_close(mine, reference, tolerance=TOLERANCE):
    assert len(mine) == len(reference)
    for a, b in zip(mine, reference, strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


VP = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_euler_is_diffusers_euler(steps, spacing, prediction):
    offset = 1 if spacing == "leading" else 0
    if spacing == "linspace" and steps == 1:
        steps = 3  # see test_one_linspace_step_starts_from_noise
    config = {**VP, "timestep_spacing": spacing, "steps_offset": offset}
    scheduler = EulerDiscreteScheduler(**config, prediction_type=PREDICTIONS[prediction])
    spec = ScheduleSpec(kind="vp", prediction=prediction, spacing=spacing, steps_offset=offset)
    assert_close(ours(spec, "euler", steps), to_vp(scheduler, theirs(scheduler, steps)))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("curve", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim_is_diffusers_ddim(steps, prediction, curve, to_one):
    config = {**VP, "beta_schedule": curve, "clip_sample": False, "steps_offset": 1}
    scheduler = DDIMScheduler(
        **config, prediction_type=PREDICTIONS[prediction], set_alpha_to_one=to_one
    )
    final = "zero" if to_one else "sigma_min"
    spec = ScheduleSpec(kind="vp", prediction=prediction, beta_curve=curve, final=final)
    if prediction == "eps" and curve == "squaredcos_cap_v2" and steps == 1:
        steps = 3  # alpha is 2e-5 at the one point: eps divides by it, in either library
    tolerance = COSINE_TOLERANCE if curve == "squaredcos_cap_v2" else TOLERANCE
    assert_close(ours(spec, "ddim", steps), theirs(scheduler, steps), tolerance)


@pytest.mark.parametrize("steps", [2, 7, 20])
def test_ddim_with_eta_adds_the_injected_noise(steps):
    draws = np.random.default_rng(1).standard_normal((steps, *SHAPE), dtype=np.float32)
    scheduler = DDIMScheduler(**VP, clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    spec = ScheduleSpec(kind="vp", prediction="eps", final="sigma_min")
    mine = ours(spec, "ddim", steps, eta=1.0, noise=lambda draw, shape: draws[draw - 1])
    assert_close(mine, theirs(scheduler, steps, draws=draws))


def test_one_linspace_step_starts_from_noise():
    """diffusers takes t = 0 for it, where there is nothing to denoise: ours takes the other end."""
    spec = ScheduleSpec(kind="vp", prediction="eps", spacing="linspace")
    assert make_schedule(spec, 1, 64, whole_t=False).t.tolist() == [999.0, 0.0]
    scheduler = EulerDiscreteScheduler(**VP, timestep_spacing="linspace")
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [0.0]


def test_zero_terminal_snr_is_diffusers():
    config = {**VP, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    scheduler = EulerDiscreteScheduler(**config, prediction_type="v_prediction")
    spec = ScheduleSpec(kind="vp", prediction="v", spacing="trailing", zero_terminal_snr=True)
    assert_close(ours(spec, "euler", 7), to_vp(scheduler, theirs(scheduler, 7)))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_is_diffusers_sd3(steps, shift):
    spec = ScheduleSpec(kind="flow", prediction="flow", spacing="linspace", shift=shift)
    assert_close(
        ours(spec, "flow_euler", steps), theirs(FlowMatchEulerDiscreteScheduler(shift=shift), steps)
    )


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("tokens", [16, 256, 4096])
def test_flow_euler_is_diffusers_flux(steps, tokens):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256)
    reference = theirs(scheduler, steps, sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    spec = ScheduleSpec(kind="flow", prediction="flow", spacing="trailing", dynamic_shift=True)
    assert_close(ours(spec, "flow_euler", steps, tokens=tokens), reference)


def test_an_unknown_sampler_is_named_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"got 'eulr', expected one of ddim, euler"):
        find_sampler("eulr", "vp")


def test_a_sampler_of_another_schedule_is_refused():
    with pytest.raises(UnknownNameError, match="another kind of schedule"):
        find_sampler("ddim", "flow")


def test_eta_is_refused_where_it_would_be_ignored():
    spec = ScheduleSpec(kind="flow", prediction="flow")
    with pytest.raises(UsageError, match="eta"):
        ours(spec, "flow_euler", 4, eta=0.5)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_out_of_range_is_refused(steps):
    with pytest.raises(UsageError, match="num_inference_steps"):
        ours(ScheduleSpec(kind="vp", prediction="eps"), "euler", steps)
