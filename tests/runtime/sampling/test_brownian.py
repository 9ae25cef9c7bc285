"""Brownian noise: increments of one path, with a path's variance, whatever the steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eri_runtime import SAMPLERS, make_table
from eri_runtime.bundle.spec import ScheduleSpec
from eri_runtime.errors import UsageError
from eri_runtime.sampling.brownian import BrownianNoise, increment, noise_intervals
from eri_runtime.sampling.noise import TorchNoise
from tests.support.oracles import trajectory

SDXL = ScheduleSpec(kind="vp", prediction="x0", spacing="trailing")
SPAN = (0.03, 14.6)
MANY = (40_000,)
times = st.floats(*SPAN)


@given(seed=st.integers(0, 2**64 - 1), a=times, b=times, c=times)
def test_increments_add_up(seed, a, b, c):
    ab, bc, ac = (increment(seed, (5,), SPAN, *pair) for pair in ((a, b), (b, c), (a, c)))
    np.testing.assert_allclose(ab + bc, ac, atol=1e-12)
    np.testing.assert_array_equal(increment(seed, (5,), SPAN, b, a), -ab)


@pytest.mark.parametrize(
    ("a", "b"), [SPAN, (14.6, 7.3), (3.0, 3.01), (0.5, 0.5005), (7.3149, 7.3151), (0.03, 0.0301)]
)
def test_the_variance_is_the_time_between(a, b):
    values = increment(1, MANY, SPAN, a, b)
    assert abs(values.mean()) < 0.02 * np.sqrt(abs(b - a))
    assert np.isclose(values.var(), abs(b - a), rtol=0.04)


def test_increments_of_apart_intervals_are_independent():
    ends = [0.03, 0.031, 2.0, 7.315, 7.4, 14.6]
    steps = [increment(2, MANY, SPAN, a, b) for a, b in pairwise(ends)]
    correlation = np.corrcoef(steps) - np.eye(len(steps))
    assert np.abs(correlation).max() < 0.03


@pytest.mark.parametrize("steps", [2, 7, 40])
def test_the_path_is_the_same_for_every_number_of_steps(steps):
    intervals = list(pairwise(np.geomspace(SPAN[1], SPAN[0], steps + 1).clip(*SPAN).tolist()))
    noise = BrownianNoise([4, 9], intervals, SPAN)
    total = sum(np.sqrt(a - b) * noise(k, (3, 2)) for k, (a, b) in enumerate(intervals, start=1))
    expected = np.stack([increment(seed, (3, 2), SPAN, SPAN[1], SPAN[0]) for seed in (4, 9)])
    np.testing.assert_allclose(total, expected, atol=1e-5)


def test_draws_are_unit_normal_and_keyed_by_their_own_seed():
    noise = BrownianNoise([4, 9], [(14.6, 3.0), (3.0, 1.0)], SPAN)
    draws = noise(2, MANY)
    assert draws.dtype == np.float32
    assert np.allclose(draws.std(axis=1), 1, atol=0.02)
    assert np.abs(np.corrcoef(draws)[0, 1]) < 0.03
    np.testing.assert_array_equal(
        noise(1, (3,))[1:], BrownianNoise([9], noise.intervals, SPAN)(1, (3,))
    )
    np.testing.assert_array_equal(noise(0, (3,)), TorchNoise([4, 9])(0, (3,)))


@given(a=times, b=times, outside=st.sampled_from([0.0, 14.7, float("nan"), float("inf")]))
def test_a_wrong_interval_or_draw_is_refused(a, b, outside):
    assume(a != b)
    for interval in [(a, a), (a, outside), (outside, b)]:
        with pytest.raises(UsageError, match="interval"):
            BrownianNoise([0], [interval], SPAN)
    with pytest.raises(UsageError, match="draw"):
        BrownianNoise([0], [(a, b)], SPAN)(2, (3,))


def finals(name, noise, counts):
    """The last x by the number of steps, all with seed 4, of a network that is drawn to ±1."""
    sampler, states = SAMPLERS[name], []
    for steps in counts:
        table = make_table(sampler, sampler.schedule(SDXL, steps, 64), SDXL)
        if noise == "brownian":
            span = (0.0, float(table.points.clock.training[-1]))
            source = BrownianNoise([4], noise_intervals(table), span)
        else:
            source = TorchNoise([4])
        x = np.float32(table.scale) * TorchNoise([4])(0, (4, 16, 16))
        states.append(trajectory(table, x, source, lambda x, _: np.tanh(x))[-1])
    return states


@pytest.mark.parametrize("name", ["euler_a", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde", "dpm2_a"])
def test_more_steps_along_one_path_converge(name):
    """Four times the steps halve the error, strong order 1/2; independent draws stay apart."""
    *few, many = finals(name, "brownian", [25, 100, 400])
    errors = [np.sqrt(np.mean((x - many) ** 2)) for x in few]
    assert errors[1] < 0.6 * errors[0]
    *few, many = finals(name, "torch", [25, 100, 400])
    apart = [np.sqrt(np.mean((x - many) ** 2)) for x in few]
    assert apart[1] > 0.7 * apart[0]
    assert errors[1] < 0.3 * apart[1]


def test_noise_that_is_no_part_of_a_path_is_refused():
    sampler = SAMPLERS["heun"]
    schedule = sampler.schedule(SDXL, 8, 64)
    table = make_table(sampler, schedule, SDXL, options={"s_churn": 4.0})
    with pytest.raises(UsageError, match=r"^noise: got brownian.*s_churn"):
        noise_intervals(table)
    assert noise_intervals(make_table(sampler, schedule, SDXL)) == []
