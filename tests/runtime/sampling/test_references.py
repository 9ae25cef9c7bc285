"""Whole trajectories of every sampler beside diffusers and k-diffusion's formulas.

The cases are `tests.support.references.cases`; `python -m benchmarks.sampler_parity` prints their
errors.
"""

from __future__ import annotations

import pytest

from eri_export.checkpoints.scheduler_facts import own_sampling
from eri_export.checkpoints.training_schedule import training_schedule
from eri_runtime import SAMPLERS
from tests.support.references.case import TOLERANCE32, outside
from tests.support.references.cases import CASES
from tests.support.references.differences import DIFFERENCES
from tests.support.references.runs import measure
from tests.support.schedulers.cases import CASES as SCHEDULER_CASES
from tests.support.schedulers.loops import settings


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_sampler_follows_its_reference(case):
    for steps in case.steps:
        errors = measure(case, steps)
        assert not outside(case, errors), (steps, errors)


def test_every_sampler_has_its_cases():
    assert {case.sampler for case in CASES} == set(SAMPLERS)


def test_every_sampler_is_compared_on_every_kind_of_schedule_it_takes():
    compared = {(case.sampler, case.spec.kind) for case in CASES}
    for family, config in SCHEDULER_CASES:  # in tests/export/checkpoints/test_schedulers.py
        read = settings(family, config)
        compared.add((own_sampling(read).sampler, training_schedule(read).kind))
    compared -= {(sampler, kind) for sampler, kind in compared if kind == "edm"}
    assert compared == {(name, kind) for name, s in SAMPLERS.items() for kind in s.kinds}


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda each: each.what)
def test_what_differs_by_definition_differs(difference):
    assert not difference.shown() <= TOLERANCE32  # diffusers may give NaN
