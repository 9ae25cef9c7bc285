"""The flow models' levels against diffusers, Black Forest Labs' formula and our own schedule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from eri_runtime.bundle.spec import ScheduleSpec
from eri_runtime.errors import UsageError
from eri_runtime.sampling.schedule import make_schedule
from eri_runtime.standalone.flow_schedules import get_flux_schedule, get_linear_schedule

STEPS = [1, 2, 7, 28]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, math.exp(1.15)])
def test_it_is_diffusers(shift, steps):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    reference = scheduler.sigmas.numpy()
    np.testing.assert_allclose(get_flux_schedule(steps, shift), reference, rtol=0, atol=2e-7)


@pytest.mark.parametrize("mu", [0.5, 1.15])
def test_it_is_the_formula_of_black_forest_labs(mu):
    """exp(mu) / (exp(mu) + 1/t − 1), and 0 where t is."""
    t = np.linspace(1, 0, 29)[:-1]
    reference = np.append(math.exp(mu) / (math.exp(mu) + 1 / t - 1), 0)
    np.testing.assert_allclose(get_flux_schedule(28, math.exp(mu)), reference, rtol=1e-14)


@pytest.mark.parametrize("steps", STEPS)
def test_it_is_the_schedule_of_a_flux_bundle(steps):
    spec = ScheduleSpec(kind="flow", prediction="flow", spacing="trailing", dynamic_shift=True)
    schedule = make_schedule(spec, steps, 4096, whole_t=False)
    mine = get_flux_schedule(steps, math.exp(1.15))
    np.testing.assert_allclose(mine, schedule.sigma, rtol=1e-14)


@given(steps=st.integers(1, 200))
def test_a_shift_of_one_is_linear(steps):
    linear = get_linear_schedule(steps)
    assert (linear.shape, linear.dtype) == ((steps + 1,), np.float64)
    np.testing.assert_allclose(linear, 1 - np.arange(steps + 1) / steps, atol=1e-15)
    np.testing.assert_array_equal(get_flux_schedule(steps, 1), linear)


@given(steps=st.integers(1, 200), shift=st.floats(1e-6, 1e6))
def test_levels_fall_from_one_to_zero(steps, shift):
    sigmas = get_flux_schedule(steps, shift)
    assert (sigmas[0], sigmas[-1]) == (1, 0)
    assert (np.diff(sigmas) < 0).all()


@pytest.mark.parametrize("steps", [0, -1, 10**6 + 1, 10**30, 2.0, float("nan"), "4", None, True])
def test_a_bad_number_of_steps_is_refused(steps):
    for schedule in (get_linear_schedule, lambda steps: get_flux_schedule(steps, 3.0)):
        with pytest.raises(
            UsageError, match=r"^num_steps: got .* expected an integer, 1 to 1000000"
        ):
            schedule(steps)


@pytest.mark.parametrize(
    "shift", [0, 9e-7, 1.1e6, -3.0, float("nan"), float("inf"), "3", None, True]
)
def test_a_bad_shift_is_refused(shift):
    with pytest.raises(UsageError, match=r"^shift: got .* from 1e-06 to 1e.06"):
        get_flux_schedule(4, shift)
