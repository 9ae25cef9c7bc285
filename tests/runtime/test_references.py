"""Whole trajectories of every sampler beside diffusers and k-diffusion's formulas.

The cases are `tests.references.cases`; `python -m benchmarks.sampler_parity` prints their errors.
"""

from __future__ import annotations

import pytest

from eri_runtime import SAMPLERS
from tests.references.case import TOLERANCE32, outside
from tests.references.cases import CASES
from tests.references.differences import DIFFERENCES
from tests.references.runs import measure


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_sampler_follows_its_reference(case):
    for steps in case.steps:
        errors = measure(case, steps)
        assert not outside(case, errors), (steps, errors)


def test_every_sampler_is_compared_on_every_kind_of_schedule_it_takes():
    compared = {(case.sampler, case.spec.kind) for case in CASES}
    assert compared == {(name, kind) for name, s in SAMPLERS.items() for kind in s.kinds}


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda each: each.what)
def test_what_differs_by_definition_differs(difference):
    assert not difference.shown() <= TOLERANCE32  # diffusers may give NaN
