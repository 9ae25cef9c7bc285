"""Spaced noise levels against diffusers' schedulers."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eri_runtime import SAMPLERS
from eri_runtime.bundle.spec import ScheduleSpec
from eri_runtime.errors import UnknownNameError, UsageError
from eri_runtime.sampling.sigmas import beta_quantile

STEPS = [1, 2, 7, 20]
VP = ScheduleSpec(kind="vp", prediction="eps", spacing="trailing")
FLOW = ScheduleSpec(kind="flow", prediction="flow", spacing="linspace", shift=3.0)


def taus(schedule):
    return np.array([schedule.clock.tau(schedule[i]) for i in range(len(schedule) + 1)])


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_vp_levels_are_diffusers(name, steps):
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = diffusers.EulerDiscreteScheduler(
        **config, timestep_spacing="trailing", **{f"use_{name}_sigmas": True}
    )
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    scheduler.set_timesteps(steps)
    schedule = SAMPLERS["euler"].schedule(VP, steps, 64, name)
    np.testing.assert_allclose(taus(schedule), scheduler.sigmas.numpy(), rtol=1e-5)
    np.testing.assert_allclose(schedule.t[:-1], scheduler.timesteps.numpy(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_flow_levels_are_diffusers(name, steps):
    options = {"shift": 3.0, f"use_{name}_sigmas": True}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**options)
    scheduler.set_timesteps(steps)
    schedule = SAMPLERS["flow_euler"].schedule(FLOW, steps, 64, name)
    np.testing.assert_allclose(taus(schedule), scheduler.sigmas.numpy(), rtol=1e-5)
    np.testing.assert_allclose(schedule.t[:-1], scheduler.timesteps.numpy(), rtol=1e-5)


def test_beta_quantiles_with_a_closed_form():
    for p in np.linspace(0, 1, 21):
        assert beta_quantile(p, 0.5) == pytest.approx(np.sin(np.pi * p / 2) ** 2, abs=1e-12)
        assert beta_quantile(p, 1.0) == pytest.approx(p, abs=1e-12)
        x = beta_quantile(p, 2.0)
        assert 3 * x**2 - 2 * x**3 == pytest.approx(p, abs=1e-12)


@given(st.floats(0.001, 0.5))
def test_a_beta_quantile_has_its_probability(p):
    """∫ x^(a−1)(1−x)^(a−1) dx over u = x^a, by Gauss-Legendre; the whole is twice the half."""
    nodes, weights = np.polynomial.legendre.leggauss(200)

    def integral(x):
        u = x**0.6 * (nodes + 1) / 2
        return x**0.6 / 2 * (weights @ (1 - u ** (1 / 0.6)) ** -0.4)

    probability = integral(beta_quantile(p, 0.6)) / integral(0.5) / 2
    assert probability == pytest.approx(p, abs=1e-7)


def test_beta_is_dense_at_both_ends_of_the_range():
    plain = taus(SAMPLERS["flow_euler"].schedule(FLOW, 11, 64))
    levels = taus(SAMPLERS["flow_euler"].schedule(FLOW, 11, 64, "beta"))
    assert (levels[0], levels[-2], levels[-1]) == (plain[0], pytest.approx(plain[-2]), 0)
    gaps = -np.diff(levels[:-1])
    np.testing.assert_allclose(gaps, gaps[::-1], rtol=1e-6)
    assert gaps[0] < gaps[2] < gaps[4]


def test_simple_takes_every_nth_training_step_from_the_noisiest():
    vp = SAMPLERS["euler"].schedule(VP, 7, 64, "simple")
    np.testing.assert_allclose(vp.t, [999, 857, 714, 571, 428, 285, 142, 0], atol=1e-6)
    flow = SAMPLERS["flow_euler"].schedule(FLOW, 4, 64, "simple")
    whole = np.array([1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(flow.sigma, 3 * whole / (1 + 2 * whole))


@pytest.mark.parametrize("listed", [[10.0, 4.0, 1.0], [10.0, 4.0, 1.0, 0.0], (10, 4, 1)])
def test_levels_may_be_listed(listed):
    schedule = SAMPLERS["euler"].schedule(VP, 3, 64, listed)
    np.testing.assert_allclose(taus(schedule), [10, 4, 1, 0])
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1)


@pytest.mark.parametrize(
    "listed",
    [[], [1.0], [1.0, 1.0], [0.5, 0.9], [1.0, float("nan")], [1.0, -1.0], [2.0, 0.5], ["1", "0.5"]],
)
def test_a_list_that_cannot_be_is_refused(listed):
    with pytest.raises(UsageError, match="sigmas"):
        SAMPLERS["flow_euler"].schedule(FLOW, 2, 64, listed)


def test_an_unknown_spacing_is_named_with_the_known_ones():
    with pytest.raises(UnknownNameError, match="got 'carras', expected one of default, karras"):
        SAMPLERS["euler"].schedule(VP, 3, 64, "carras")
