"""Every named sampler: its table against the algorithm on arrays, and what it must always do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eri_runtime import SAMPLERS, denoise, make_table
from eri_runtime.bundle.spec import ScheduleSpec
from eri_runtime.errors import EriError, UnknownNameError, UsageError
from eri_runtime.sampling import REFUSED, find_sampler, names_of
from eri_runtime.sampling.prediction import precondition
from eri_runtime.sampling.samplers import KEEP_NOISE
from tests.support.oracles import clip, network, trajectory

SHAPE = (2, 3, 4)
SIGMAS = ["default", "karras", "exponential", "beta", "simple"]
CURVES = ["linear", "scaled_linear", "squaredcos_cap_v2"]
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
        twin = f"flow_{name}" if spec.kind == "flow" else name.removeprefix("flow_")
        if twin in SAMPLERS and twin != name:
            assert find_sampler(name, spec.kind) is SAMPLERS[twin]
            return
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

    options = {k: v for k, v in sampler.checked({}).items() if k != KEEP_NOISE}
    last = sampler.algorithm(evaluate, lambda: draws(next(count)), x, schedule, **options)
    mine = trajectory(table, x, draws, hook=clip)
    for a, b in zip(mine, [*states[1:], last], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())


def test_ddim_can_keep_the_noise_of_the_unclipped_x0():
    """diffusers' DDIM clips x_0 alone: x' = alpha'·clip(x_0) + sigma'·eps."""
    spec, sampler = SPECS["eps"], SAMPLERS["ddim"]
    schedule = sampler.schedule(spec, 7, 64)
    table = make_table(sampler, schedule, spec, options={"keep_noise": 1})
    x = draws(0)
    mine = trajectory(table, x, draws, hook=clip)
    for state, (here, there) in zip(mine, schedule.steps(), strict=True):
        eps = network(x, here.t)
        x0 = clip((x - here.sigma * eps) / here.alpha)
        x = there.alpha * x0 + there.sigma * eps
        np.testing.assert_allclose(state, x, rtol=0, atol=1e-10 * np.abs(x).max())
    plain = make_table(sampler, schedule, spec)
    assert np.abs(trajectory(plain, draws(0), draws, hook=clip)[-1] - x).max() > 1e-3
    np.testing.assert_array_equal(
        trajectory(plain, draws(0), draws)[-1], trajectory(table, draws(0), draws)[-1]
    )


WIDTHS = {
    "heun": (2, 0),
    "dpmpp_2m": (2, 0),
    "dpmpp_2m_sde": (2, 1),
    "dpmpp_sde": (2, 2),
    "dpmpp_3m_sde": (3, 1),
    "lms": (4, 0),
    "unipc": (3, 0),
    "lcm": (1, 1),
    "pndm": (5, 0),
    "pndm_v": (5, 0),
    "sa_solver": (3, 1),
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
def specs(draw, kind):
    """What a checkpoint may say of its schedule."""
    fields, count = {}, draw(st.sampled_from([1000, 1000, 10, 100, 37, 4000]))
    if kind == "vp":
        fields["zero_terminal_snr"] = draw(st.booleans())
        fields["beta_curve"] = draw(st.sampled_from(CURVES))
        # as much noise in all whatever the number of training steps
        fields["beta_start"] = min(0.3, draw(st.floats(1e-5, 1e-3)) * 1000 / count)
        fields["beta_end"] = min(0.9, draw(st.floats(2e-3, 0.03)) * 1000 / count)
    elif draw(st.booleans()):
        fields = {"dynamic_shift": True, "max_shift": draw(st.floats(0.5, 2.0))}
    return ScheduleSpec(
        kind=kind,
        prediction=draw(st.sampled_from(["eps", "v"] if kind == "vp" else ["flow"])),
        num_train_timesteps=count,
        spacing=draw(st.sampled_from(["leading", "trailing", "linspace"])),
        steps_offset=draw(st.integers(0, 3)),
        final=draw(st.sampled_from(["zero", "sigma_min"])),
        shift=draw(st.floats(0.5, 6.0)),
        **fields,
    )


@st.composite
def levels(draw, spec, steps):
    """A list of a caller's, falling by any factor."""
    level = draw(st.floats(0.5, 1.0) if spec.kind == "flow" else st.floats(1.0, 1e3))
    falls = st.floats(0.7, 0.99)
    return [level := level * draw(falls) for _ in range(steps)]


@st.composite
def configurations(draw):
    name, kind = draw(st.sampled_from(PAIRS))
    spec, sampler = draw(specs(kind)), SAMPLERS[name]
    if sampler.original_steps is not None:
        taught = draw(st.integers(1, 100))
        sampler = dataclasses.replace(sampler, original_steps=taught)
    most = min(40, spec.num_train_timesteps)
    if sampler.original_steps is not None and kind == "vp":
        most = min(most, sampler.original_steps)
    steps = draw(st.integers(1, most) | st.just(most))
    tokens = draw(st.integers(1, 20_000))
    sigmas = draw(st.sampled_from(SIGMAS))
    if draw(st.booleans()) and spec.final == "zero":
        sigmas = draw(levels(spec, steps))
    options = {}
    for option, (default, low, high) in sampler.options.items():
        if draw(st.booleans()) and option != "order":
            options[option] = draw(st.floats(low, min(high, 100.0)))
        elif option == "order":
            options[option] = draw(st.integers(int(low), int(high)))
        assert low <= default <= high
    return sampler, spec, (steps, tokens, sigmas), options


@settings(max_examples=250, deadline=None)
@given(configurations())
def test_a_perfect_network_is_followed_to_its_image(configuration):
    """Tables are finite, and a constant x_0 is reached where the last sigma is 0."""
    sampler, spec, arguments, options = configuration
    schedule = sampler.schedule(spec, *arguments)
    constant = dataclasses.replace(spec, prediction="x0")
    for table in (make_table(sampler, schedule, s, options=options) for s in (spec, constant)):
        for column in numbers(table):
            assert np.isfinite(column).all()
    target = np.full(SHAPE, 0.3)
    x = table.scale * draws(0)
    *_, last = denoise(lambda x, at: target, table, x, draws)
    if options.get("large"):
        return  # DDPM's fixed_large adds noise in the last step too
    if sampler.name == "pndm_v":
        return  # v of a constant x_0 changes over a step, and its mean is that of no x_0
    if schedule.sigma[-1] == 0 and sampler.name != "lcm":
        np.testing.assert_allclose(last.x, target, rtol=0, atol=1e-8)
    elif schedule.sigma[-1] == 0:
        # lcm's boundary condition keeps c_skip of x, all of it at t = 0
        t = table.points.t[-2] if spec.kind == "vp" else float("inf")
        u = options.get("timestep_scaling", 10.0) * t if spec.kind == "vp" else t
        kept = 0.25 / (u**2 + 0.25)
        assert np.abs(last.x - target).max() <= 1e-8 + 30 * kept


@pytest.mark.parametrize("offset", [1, 3])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", [name for name, kind in PAIRS if kind == "vp"])
def test_a_timestep_that_repeats_is_a_step_that_changes_nothing(name, order, offset):
    """As many `leading` steps as training has: the offset moves the first ones to the last t."""
    spec = dataclasses.replace(SPECS["v"], num_train_timesteps=20, steps_offset=offset)
    sampler = dataclasses.replace(SAMPLERS[name], original_steps=None)
    options = {each: 1 for each in ("sde", "heun") if each in sampler.options}
    options |= {"order": order} if "order" in sampler.options else {}
    schedule = sampler.schedule(spec, 20, 64)
    assert schedule.t[:5].tolist() == ([19, 19, 18, 17, 16] if offset == 1 else [19] * 4 + [18])
    table = make_table(sampler, schedule, spec, options=options)
    assert all(np.isfinite(column).all() for column in numbers(table))


def unusable_lists(steps, kind):
    """Lists of levels that cannot be, `steps` long where that is not what is wrong."""
    good = [0.9 * 0.8**i for i in range(steps)]
    value = st.sampled_from(
        [float("nan"), float("inf"), -1.0, 0.0, -0.0, 1e-300, 1e300, 10**400, "1", None, 1j]
    )
    return st.one_of(
        st.tuples(value, st.integers(0, steps - 1)).map(
            lambda at: [*good[: at[1]], at[0], *good[at[1] + 1 :]]
        ),
        st.sampled_from([[], good[1:], [*good, 1e-3], [*good, 0.0, 0.0], good * 2]),
        st.just([0.9] * steps if steps > 1 else [0.9, 0.9]),
        st.just(good[::-1] if steps > 1 else [0.0]),
        st.just([1.5, *good[1:]] if kind == "flow" else [float("inf"), *good[1:]]),
        st.sampled_from(["", "Karras", "carras", 3.0, None, 7]),
    )


@st.composite
def unusable(draw):
    """A configuration with one thing wrong."""
    name, kind = draw(st.sampled_from(PAIRS))
    sampler, steps, sigmas, options = SAMPLERS[name], draw(st.integers(1, 12)), "default", {}
    wrong = draw(st.sampled_from(["steps", "sigmas", "option", "unknown option"]))
    if wrong == "steps":
        steps = draw(
            st.sampled_from([0, -1, -(10**9), 10**9, 10**400, 2.5, float("nan"), "7", None])
        )
    elif wrong == "sigmas":
        sigmas = draw(unusable_lists(steps, kind))
    elif wrong == "option" and sampler.options:
        option = draw(st.sampled_from(sorted(sampler.options)))
        _, low, high = sampler.options[option]
        beyond = [float("nan"), low - 1, "1", None, 1j, float("-inf")]
        options[option] = draw(st.sampled_from([*beyond, *[high + 1] * (high < float("inf"))]))
    else:
        options[draw(st.sampled_from(["etta", "", "s_chrun", "Order"]))] = 1.0
    return name, kind, steps, sigmas, options


@settings(max_examples=300, deadline=None)
@given(unusable())
def test_what_cannot_be_is_refused_and_never_nan(configuration):
    """With warnings as errors, so that no NaN is made on the way."""
    name, kind, steps, sigmas, options = configuration
    spec = SPECS["flow" if kind == "flow" else "eps"]
    with pytest.raises(UsageError) as refusal:
        make_table(
            SAMPLERS[name], SAMPLERS[name].schedule(spec, steps, 64, sigmas), spec, options=options
        )
    assert refusal.value.expected


names = {each.lower() for own in SAMPLERS.values() for each in (own.name, *names_of(own))}


@given(st.text(max_size=8), st.sampled_from(["vp", "flow"]))
def test_a_name_of_no_sampler_is_refused(name, kind):
    assume(name.strip().lower() not in names)
    with pytest.raises(UnknownNameError):
        find_sampler(name, kind)


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
