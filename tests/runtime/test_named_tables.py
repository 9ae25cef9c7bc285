"""Every named sampler: its table against the algorithm on arrays, and what it must always do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eri_runtime import SAMPLERS, denoise, make_table
from eri_runtime.errors import EriError, UnknownNameError, UsageError
from eri_runtime.prediction import precondition
from eri_runtime.samplers import REFUSED, find_sampler
from eri_runtime.spec import ScheduleSpec
from tests.oracles import clip, network, trajectory

SHAPE = (2, 3, 4)
SIGMAS = ["default", "karras", "exponential", "beta", "simple"]
PAIRS = [(name, kind) for name, sampler in SAMPLERS.items() for kind in sampler.kinds]
SPECS = {
    "eps": ScheduleSpec(kind="vp", prediction="eps", spacing="trailing"),
    "v": ScheduleSpec(kind="vp", prediction="v"),
    "flow": ScheduleSpec(kind="flow", prediction="flow", spacing="linspace", shift=3.0),
}


def draws(draw, shape=SHAPE[1:]):
    return np.random.default_rng(draw).standard_normal((SHAPE[0], *shape))


@pytest.mark.parametrize("sigmas", SIGMAS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("prediction", SPECS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_table_is_the_algorithm_on_arrays(name, prediction, steps, sigmas):
    sampler, spec = SAMPLERS[name], SPECS[prediction]
    if spec.kind not in sampler.kinds:
        with pytest.raises(UnknownNameError, match="another kind of schedule"):
            find_sampler(name, spec.kind)
        return
    schedule = sampler.schedule(spec, steps, 64, sigmas)
    table = make_table(sampler, schedule, spec)
    x = table.scale * draws(0)
    states, count = [], iter(range(1, 1000))

    def evaluate(x, point):
        states.append(x)
        c = precondition(prediction, point)
        return clip(c.c_skip * x + c.c_out * network(c.c_in * x, point.t))

    last = sampler.algorithm(
        evaluate, lambda: draws(next(count)), x, schedule, **sampler.checked({})
    )
    mine = trajectory(table, x, draws, hook=clip)
    for a, b in zip(mine, [*states[1:], last], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())


WIDTHS = {
    "heun": (2, 0),
    "dpmpp_2m": (2, 0),
    "dpmpp_2m_sde": (2, 1),
    "dpmpp_sde": (2, 2),
    "dpmpp_3m_sde": (3, 1),
    "lms": (4, 0),
    "unipc": (3, 0),
    "lcm": (1, 1),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_a_table_is_as_wide_as_its_algorithm_reaches(name):
    sampler = SAMPLERS[name]
    table = make_table(sampler, sampler.schedule(SPECS["v"], 12, 64), SPECS["v"])
    assert (table.B.shape[1], table.C.shape[1]) == WIDTHS[name]


def numbers(table):
    """Every coefficient of a table and of its points."""
    for part in (table, table.points):
        for value in vars(part).values():
            if isinstance(value, float | np.ndarray):
                yield value


@st.composite
def configurations(draw):
    name, kind = draw(st.sampled_from(PAIRS))
    spec = ScheduleSpec(
        kind=kind,
        prediction=draw(st.sampled_from(["eps", "v"] if kind == "vp" else ["flow"])),
        spacing=draw(st.sampled_from(["leading", "trailing", "linspace"])),
        steps_offset=draw(st.integers(0, 1)),
        final=draw(st.sampled_from(["zero", "sigma_min"])),
        shift=draw(st.floats(0.5, 6.0)),
    )
    options = {}
    for option, (default, low, high) in SAMPLERS[name].options.items():
        if draw(st.booleans()) and option != "order":
            options[option] = draw(st.floats(low, min(high, 100.0)))
        elif option == "order":
            options[option] = draw(st.integers(int(low), int(high)))
        assert low <= default <= high
    return name, spec, draw(st.integers(1, 40)), draw(st.sampled_from(SIGMAS)), options


@settings(max_examples=150, deadline=None)
@given(configurations())
def test_a_perfect_network_is_followed_to_its_image(configuration):
    """Tables are finite, and a constant x_0 is reached where the last sigma is 0."""
    name, spec, steps, sigmas, options = configuration
    sampler = SAMPLERS[name]
    schedule = sampler.schedule(spec, steps, 64, sigmas)
    constant = dataclasses.replace(spec, prediction="x0")
    for table in (make_table(sampler, schedule, s, options=options) for s in (spec, constant)):
        for column in numbers(table):
            assert np.isfinite(column).all()
    target = np.full(SHAPE, 0.3)
    x = table.scale * draws(0)
    *_, last = denoise(lambda x, at: target, table, x, draws)
    if schedule.sigma[-1] == 0:
        # lcm's boundary condition keeps a trace of x: c_skip is 7e-6 at its first taught t, 19
        tolerance = 1e-4 if name == "lcm" else 1e-8
        np.testing.assert_allclose(last.x, target, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("euler", {"eta": 0.5}),
        ("euler_a", {"eta": float("nan")}),
        ("euler_a", {"eta": 1.5}),
        ("euler_a", {"eta": "much"}),
        ("heun", {"s_churn": -1.0}),
        ("heun", {"s_noise": float("inf")}),
        ("lms", {"order": 5}),
        ("dpmpp_2m", {"s_churn": 1.0}),
    ],
)
def test_an_option_that_cannot_be_is_refused(name, options):
    sampler, spec = SAMPLERS[name], SPECS["eps"]
    with pytest.raises(UsageError, match=next(iter(options))):
        make_table(sampler, sampler.schedule(spec, 4, 64), spec, options=options)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_table_is_refused_with_the_reason(name):
    with pytest.raises(UnknownNameError, match="table") as refusal:
        find_sampler(name, "vp")
    assert refusal.value.fix == REFUSED[name]


def test_a_distilled_sampler_takes_no_more_steps_than_were_taught():
    with pytest.raises(EriError, match="num_inference_steps: got 51, expected 1 to 50"):
        SAMPLERS["lcm"].schedule(SPECS["eps"], 51, 64)
