"""Running one case: our table, the reference, and the worst relative error over every x.

A run starts from the same noise on both sides and meets the same draws. float32 compares our
float32 loop with diffusers' (or, without one, with the float64 oracle); float64 compares our loop
on float64 arrays with that oracle.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from eri_runtime import SAMPLERS, make_table
from tests.support.oracles import trajectory
from tests.support.references.case import Case, Errors
from tests.support.references.exact import exact
from tests.support.references.schedulers import draws, run_diffusers


def measure(case: Case, steps: int) -> Errors:
    """Both errors of one run."""
    scheduler = None if case.reference is None else case.reference.make(steps)
    sigmas = case.sigmas
    if sigmas == "reference":
        sigmas = scheduler.sigmas[:steps].tolist()
    elif callable(sigmas):
        sigmas = sigmas(steps)
    sampler = SAMPLERS[case.sampler]
    schedule = sampler.schedule(case.spec, steps, case.tokens, sigmas)
    table = make_table(sampler, schedule, case.spec, options=case.options)
    single, double = (
        trajectory(table, d(table.scale) * draws(d, 0), partial(draws, d), case.network)
        for d in (np.float32, np.float64)
    )
    oracle, reference64 = exact(case, schedule, table, steps)
    reference32 = reference64
    if case.reference is not None:
        reference32 = run_diffusers(case.reference, scheduler, table, np.float32, case.network)
    return Errors(
        float32=worst(single, reference32),
        ours32=worst(single, reference64),
        theirs32=worst(reference32, reference64),
        float64=worst(double, reference64),
        oracle=oracle,
    )


def worst(mine, reference):
    """The largest error over a trajectory."""
    assert len(mine) == len(reference), "another number of evaluations"
    return max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(mine, reference, strict=True)
    )
