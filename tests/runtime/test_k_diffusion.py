"""k-diffusion's published formulas, written out in its own x/alpha over sigma, as the oracle.

For what diffusers has not, or otherwise: its DPMSolverSDE needs torchsde, its LMS needs SciPy, its
DPMSolverSinglestep and its Heun know no noise (eta, s_churn), and its third-order SDE has another
sign in its last term. k-diffusion's `sigma` is our tau, its x our x / alpha.
"""

from __future__ import annotations

import itertools
from math import exp, expm1, log, sqrt

import numpy as np
import pytest

from eri_runtime import SAMPLERS, make_table
from eri_runtime.prediction import precondition
from eri_runtime.spec import ScheduleSpec
from tests.oracles import network, trajectory
from tests.runtime.test_solvers import STEPS

SHAPE = (2, 3, 4)
TOLERANCE = 1e-10  # all in float64
SPACING = "trailing"


def draws(draw, shape=SHAPE[1:]):
    return np.random.default_rng(draw).standard_normal((SHAPE[0], *shape))


def fresh():
    """The draws one after another, as the loop takes them."""
    count = 0

    def draw():
        nonlocal count
        count += 1
        return draws(count)

    return draw


def ancestral(sigma, sigma_next, eta=1.0):
    up = min(sigma_next, eta * sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    return sqrt(sigma_next**2 - up**2), up


def dpm2(model, x, sigmas, eta, noise):
    for s, n in itertools.pairwise(sigmas):
        down, up = ancestral(s, n, eta)
        d = (x - model(x, s)) / s
        if down == 0:
            x = x + d * (down - s)
        else:
            mid = exp((log(s) + log(down)) / 2)
            x2 = x + d * (mid - s)
            x = x + (x2 - model(x2, mid)) / mid * (down - s)
        if up > 0:
            x = x + noise() * up
    return x


def dpmpp_2s_a(model, x, sigmas, eta, noise):
    for s, n in itertools.pairwise(sigmas):
        down, up = ancestral(s, n, eta)
        d = model(x, s)
        if down == 0:
            x = x + (x - d) / s * (down - s)
        else:
            t, t_next = -log(s), -log(down)
            mid = exp(-(t + (t_next - t) / 2))
            x2 = (mid / s) * x - expm1(-(t_next - t) / 2) * d
            x = (down / s) * x - expm1(-(t_next - t)) * model(x2, mid)
        if up > 0:
            x = x + noise() * up
    return x


def dpmpp_sde(model, x, sigmas, eta, noise):
    for s, n in itertools.pairwise(sigmas):
        d = model(x, s)
        if n == 0:
            x = x + (x - d) / s * (n - s)
            continue
        mid = sqrt(s * n)
        early, late = noise(), noise()  # the path's two pieces, s to mid and mid to n
        whole = (sqrt(s - mid) * early + sqrt(mid - n) * late) / sqrt(s - n)
        down, up = ancestral(s, mid, eta)
        x2 = (down / s) * x - expm1(log(down / s)) * d + early * up
        d2 = model(x2, mid)
        down, up = ancestral(s, n, eta)
        x = (down / s) * x - expm1(log(down / s)) * d2 + whole * up
    return x


def dpmpp_3m_sde(model, x, sigmas, eta, noise):
    d_1 = d_2 = h_1 = h_2 = None
    for s, n in itertools.pairwise(sigmas):
        d = model(x, s)
        if n == 0:
            x = d
            continue
        h = log(s / n)
        h_eta = h * (eta + 1)
        x = exp(-h_eta) * x - expm1(-h_eta) * d
        phi_2 = expm1(-h_eta) / h_eta + 1
        if h_2 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (d - d_1) / r0, (d_1 - d_2) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / h_eta - 0.5) * d2
        elif h_1 is not None:
            x = x + phi_2 * (d - d_1) / (h_1 / h)
        if eta:
            x = x + noise() * n * sqrt(-expm1(-2 * h * eta))
        d_1, d_2, h_1, h_2 = d, d_1, h, h_1
    return x


def lms(model, x, sigmas, eta, noise):
    ds, at = [], []
    for s, n in itertools.pairwise(sigmas):
        ds, at = [(x - model(x, s)) / s, *ds][:4], [s, *at][:4]
        for j, d in enumerate(ds):
            others = [a for i, a in enumerate(at) if i != j]
            basis = np.poly1d(others, r=True) / np.prod([at[j] - a for a in others])
            integral = np.polyint(basis)
            x = x + (integral(n) - integral(s)) * d
    return x


def heun_churned(model, x, sigmas, eta, noise):
    gamma = min(4.0 / (len(sigmas) - 1), sqrt(2) - 1)
    for s, n in itertools.pairwise(sigmas):
        hat = s
        if 0.1 <= s <= 50:
            hat = s * (1 + gamma)
            x = x + noise() * 1.003 * sqrt(hat**2 - s**2)
        d = (x - model(x, hat)) / hat
        if n == 0:
            x = x + d * (n - hat)
        else:
            x2 = x + d * (n - hat)
            x = x + (d + (x2 - model(x2, n)) / n) / 2 * (n - hat)
    return x


CHURN = {"s_churn": 4.0, "s_tmin": 0.1, "s_tmax": 50.0, "s_noise": 1.003}
ORACLES = {
    "lms": (lms, 0.0, {}),
    "dpm2": (dpm2, 0.0, {}),
    "dpm2_a": (dpm2, 1.0, {}),
    "dpm2_a half": (dpm2, 0.5, {"eta": 0.5}),
    "dpmpp_2s_a": (dpmpp_2s_a, 1.0, {}),
    "dpmpp_2s_a half": (dpmpp_2s_a, 0.5, {"eta": 0.5}),
    "dpmpp_sde": (dpmpp_sde, 1.0, {}),
    "dpmpp_sde half": (dpmpp_sde, 0.5, {"eta": 0.5}),
    "dpmpp_3m_sde": (dpmpp_3m_sde, 1.0, {}),
    "dpmpp_3m_sde still": (dpmpp_3m_sde, 0.0, {"eta": 0.0}),
    "heun churned": (heun_churned, 0.0, CHURN),
}


@pytest.mark.parametrize("sigmas", ["default", "karras"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("case", ORACLES)
def test_a_sampler_is_k_diffusions(case, prediction, steps, sigmas):
    oracle, eta, options = ORACLES[case]
    sampler = SAMPLERS[case.split()[0]]
    spec = ScheduleSpec(kind="vp", prediction=prediction, spacing=SPACING)
    schedule = sampler.schedule(spec, steps, 64, sigmas)
    table = make_table(sampler, schedule, spec, options=options)
    states = []

    def model(x, sigma):
        point = schedule.clock.at(sigma)
        vp = x * point.alpha
        states.append(vp)
        t = float(table.points.t[len(states) - 1])
        assert t == pytest.approx(point.t, abs=1.0)
        c = precondition(prediction, point)
        return c.c_skip * vp + c.c_out * network(vp, t)

    ratios = [schedule.clock.tau(schedule[i]) for i in range(steps + 1)]
    x = table.scale * draws(0)
    last = oracle(model, x / schedule[0].alpha, ratios, eta, fresh())
    mine = trajectory(table, x, draws)
    for a, b in zip(mine, [*states[1:], last], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * np.abs(b).max())
