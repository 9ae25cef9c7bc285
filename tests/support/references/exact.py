"""What a run should be in float64.

k-diffusion's formula, or for what has none diffusers run on float64 arrays.
"""

from __future__ import annotations

import inspect

import numpy as np
import torch

from eri_runtime import SAMPLERS
from eri_runtime.sampling.schedule import Schedule
from eri_runtime.sampling.table import SamplerTable
from tests.support.references.case import Case
from tests.support.references.formulas import FORMULAS, OVER_SIGMA
from tests.support.references.schedulers import draws, fresh, run_diffusers


def exact(case: Case, schedule: Schedule, table: SamplerTable, steps: int):
    """The name of the float64 oracle, and its states."""
    if case.sampler in FORMULAS or is_plain(case):
        return "formula", formula(case, schedule, table)
    scheduler = case.reference.make(steps)
    taus = [schedule.clock.tau(schedule[i]) for i in range(steps + 1)]
    scheduler.sigmas = torch.tensor(taus, dtype=torch.float64)
    states = run_diffusers(case.reference, scheduler, table, np.float64, case.network)
    return "diffusers in float64", states


def is_plain(case):
    """Whether the formula is over a flow's sigma itself."""
    return case.spec.kind == "flow" and case.sampler in OVER_SIGMA


def formula(case, schedule, table):
    """k-diffusion's, over sigma/alpha, or over a flow's sigma where it integrates that."""
    plain = is_plain(case)
    pairs = zip(schedule.alpha.tolist(), schedule.sigma.tolist(), strict=True)
    sigmas = [s if plain else s / a if a > 0 else float("inf") for a, s in pairs]
    states = []

    def alpha_of(sigma):
        if plain:
            return 1.0
        return 1 / (1 + sigma) if case.spec.kind == "flow" else 1 / np.sqrt(1 + sigma**2)

    def model(y, sigma):
        x = y * alpha_of(sigma)
        states.append(x)
        t = float(table.points.t[len(states) - 1])
        tau = sigma / (1 + sigma) if case.spec.kind == "flow" and not plain else sigma
        assert abs(t - schedule.clock.at(tau).t) <= 1, "the clock of another level"
        return denoised(case, x, 1 - sigma if plain else alpha_of(sigma), sigma, t)

    run = (OVER_SIGMA if plain else FORMULAS)[case.sampler]
    sampler, known = SAMPLERS[case.sampler], inspect.signature(run).parameters
    options = {k: v for k, v in sampler.checked(case.options).items() if k in known}
    assert case.options.keys() <= options.keys(), "the formula has no such option"
    noise, x = fresh(np.float64), table.scale * draws(np.float64, 0)
    if sigmas[0] == float("inf"):
        sigmas, x = sigmas[1:], from_pure_noise(case, x, schedule, noise, states, options)
    last = run(model, x / alpha_of(sigmas[0]), sigmas, noise, **options)
    return [*states[1:], last * alpha_of(sigmas[-1])]


def from_pure_noise(case, x, schedule, noise, states, options):
    """A flow's first step from sigma 1, where sigma/alpha is infinite: x_0 and a noise."""
    eta, s_noise = options.get("eta", 0.0), options.get("s_noise", 1.0)
    assert eta in (0, 1)
    states.append(x)
    after = schedule[1]
    noised = s_noise * noise() if eta and after.sigma > 0 else x
    return after.alpha * denoised(case, x, 0.0, 1.0, schedule[0].t) + after.sigma * noised


def denoised(case, x, alpha, ratio, t):
    """x_0 by the definition of each prediction; `ratio` is sigma/alpha."""
    F = case.network(x, t)
    if case.spec.kind == "flow":
        return x - (1 - alpha) * F
    return {
        "eps": lambda: x / alpha - ratio * F,
        "v": lambda: alpha * x - ratio * alpha * F,
        "x0": lambda: F,
    }[case.spec.prediction]()
