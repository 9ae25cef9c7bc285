"""The table against the algorithm itself run on arrays, for every width it can have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eri_runtime import denoise, make_schedule, tabulate
from eri_runtime.bundle.spec import ScheduleSpec
from eri_runtime.errors import NonFiniteError, UsageError
from eri_runtime.sampling.prediction import precondition
from eri_runtime.sampling.samplers import ddim
from eri_runtime.sampling.symbolic import Linear
from tests.support.oracles import clip, network, trajectory

SHAPE = (2, 3, 4)
VP = ScheduleSpec(kind="vp", prediction="v")
FLOW = ScheduleSpec(kind="flow", prediction="flow", spacing="linspace", shift=3.0)


def draws(draw, shape):
    return np.random.default_rng(draw).standard_normal((SHAPE[0], *shape))


def heun(denoise, noise, x, schedule):
    """Two evaluations a step, one at the end: W 2."""
    for here, there in schedule.steps():
        keep = there.sigma / here.sigma
        give = there.alpha - here.alpha * keep
        first = denoise(x, here)
        guess = keep * x + give * first
        second = first if there.sigma == 0 else denoise(guess, there)
        x = keep * x + give / 2 * (first + second)
    return x


def three_back(denoise, noise, x, schedule):
    """A multistep rule with made-up weights and noise: W 4, V 2."""
    past, before = [], None
    for here, there in schedule.steps():
        past = [denoise(x, here), *past][:4]
        n = noise()
        x = 0.9 * x + sum((0.1 / (j + 1) * m for j, m in enumerate(past[1:])), 0.2 * past[0])
        x = x + 0.3 * there.sigma * n
        if before is not None:
            x = x - 0.1 * there.sigma * before
        before = n
    return x


def eager(algorithm, schedule, prediction, x, hook):
    """The algorithm on float64 arrays: the oracle."""
    count = 0
    states = []

    def evaluate(x, point):
        states.append(x)
        c = precondition(prediction, point)
        return hook(c.c_skip * x + c.c_out * network(c.c_in * x, point.t))

    def noise():
        nonlocal count
        count += 1
        return draws(count, SHAPE[1:])

    result = algorithm(evaluate, noise, x, schedule)
    return [*states[1:], result]


def ancestral(denoise, noise, x, schedule):
    return ddim(denoise, noise, x, schedule, eta=1.0)


@pytest.mark.parametrize("algorithm", [ddim, ancestral, heun, three_back])
@pytest.mark.parametrize("spec", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("hook", [clip, lambda x: x], ids=["clipped", "plain"])
def test_the_table_is_the_algorithm(algorithm, spec, steps, hook):
    schedule = make_schedule(spec, steps, 64, whole_t=False)
    x = np.random.default_rng(0).standard_normal(SHAPE)
    table = tabulate(algorithm, schedule, spec.prediction)
    mine = trajectory(table, x, draws, hook=hook)
    reference = eager(algorithm, schedule, spec.prediction, x, hook)
    assert len(mine) == len(reference)
    for a, b in zip(mine, reference, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_the_table_is_as_wide_as_the_algorithm_reaches():
    schedule = make_schedule(VP, 7, 64, whole_t=False)
    widths = {
        algorithm: (table.B.shape[1], table.C.shape[1])
        for algorithm in (ddim, ancestral, heun, three_back)
        for table in [tabulate(algorithm, schedule, "v")]
    }
    assert widths == {ddim: (1, 0), ancestral: (1, 1), heun: (2, 0), three_back: (4, 2)}


def reaching_back(count):
    """An algorithm with a history of `count` denoised."""

    def algorithm(denoise, noise, x, schedule):
        past = []
        for here, _ in schedule.steps():
            past = [denoise(x, here), *past][:count]
            x = x + 0.01 * sum(past[1:], past[0])
        return x

    return algorithm


def test_an_algorithm_that_reaches_too_far_back_is_refused():
    schedule = make_schedule(VP, 15, 64, whole_t=False)
    assert tabulate(reaching_back(13), schedule, "eps").B.shape == (15, 13)
    with pytest.raises(UsageError, match="history of x0: got 14, expected at most 13"):
        tabulate(reaching_back(14), schedule, "eps")


def test_a_history_that_no_step_graph_holds_has_no_rows_for_one():
    schedule = make_schedule(VP, 8, 64, whole_t=False)
    assert tabulate(reaching_back(4), schedule, "eps").rows().shape == (8, 13)
    with pytest.raises(UsageError, match="history: got 5, expected at most 4"):
        tabulate(reaching_back(5), schedule, "eps").rows()


def test_noise_that_has_no_weight_is_drawn_all_the_same():
    """As diffusers' SA-Solver does: the draws after it are another's otherwise."""

    def sampler(denoise, noise, x, schedule):
        for k, (here, _) in enumerate(schedule.steps()):
            x = x + denoise(x, here) + (k % 2) * noise()
        return x

    schedule, drawn = make_schedule(VP, 4, 64, whole_t=False), []

    def recorded(draw, shape):
        drawn.append(draw)
        return draws(draw, shape)

    table, x = tabulate(sampler, schedule, "v"), draws(0, SHAPE[1:])
    assert table.C[:, 0].tolist() == [0, 1, 0, 1]
    mine = trajectory(table, x, recorded, hook=clip)
    reference = eager(sampler, schedule, "v", x, clip)
    assert drawn == [1, 2, 3, 4]
    np.testing.assert_allclose(mine[-1], reference[-1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "misuse", [lambda x, d: x * d, lambda x, d: np.exp(d), lambda x, d: x + 1.0, lambda x, d: x / d]
)
def test_what_is_not_linear_is_refused(misuse):
    def sampler(denoise, noise, x, schedule):
        return misuse(x, denoise(x, schedule[0]))

    with pytest.raises((UsageError, TypeError)):
        tabulate(sampler, make_schedule(VP, 1, 64, whole_t=False), "eps")


def test_a_second_draw_in_one_evaluation_is_refused():
    def sampler(denoise, noise, x, schedule):
        return denoise(x, schedule[0]) + noise() + noise()

    with pytest.raises(UsageError, match="a second draw in row 0"):
        tabulate(sampler, make_schedule(VP, 1, 64, whole_t=False), "eps")


@given(
    steps=st.integers(1, 60),
    eta=st.floats(0, 1),
    zero_snr=st.booleans(),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
)
def test_a_perfect_network_is_followed_exactly(steps, eta, zero_snr, spacing):
    """For a constant x_0 every sampler must end on it, whatever the noise."""
    spec = ScheduleSpec(kind="vp", prediction="x0", spacing=spacing, zero_terminal_snr=zero_snr)
    schedule = make_schedule(spec, steps, 64, whole_t=False)
    table = tabulate(lambda d, n, x, s: ddim(d, n, x, s, eta=eta), schedule, "x0")
    target = np.full(SHAPE, 0.3)
    *_, last = denoise(lambda x, at: target, table, draws(0, SHAPE[1:]), draws)
    np.testing.assert_allclose(last.x, target, atol=1e-9)


@given(st.dictionaries(st.text(max_size=3), st.floats(-1e6, 1e6)), st.floats(0.1, 1e3))
def test_linear_arithmetic(terms, scalar):
    value = Linear(terms)
    assert (value + value - value).terms == pytest.approx(terms, rel=1e-9, abs=1e-6)
    assert (scalar * value / scalar).terms == pytest.approx(terms, rel=1e-12, abs=1e-12)
    assert all(v == 0 for v in (value - value).terms.values())


def test_the_loop_names_the_step_that_was_not_finite():
    schedule = make_schedule(FLOW, 5, 64, whole_t=False)
    table = tabulate(ddim, schedule, "flow")

    def failing(x, at):
        return x if at.t > 500 else np.full_like(x, np.nan)

    steps = denoise(failing, table, draws(0, SHAPE[1:]), draws)
    with pytest.raises(NonFiniteError, match=r"latents after step 5 of 5: got NaN or Inf in 24"):
        list(steps)


def test_the_loop_can_be_left_at_any_step():
    table = tabulate(ddim, make_schedule(FLOW, 5, 64, whole_t=False), "flow")
    calls = []

    def counting(x, at):
        calls.append(at)
        return x

    for step in denoise(counting, table, draws(0, SHAPE[1:]), draws):
        if step.index == 1:
            break
    assert len(calls) == 2
