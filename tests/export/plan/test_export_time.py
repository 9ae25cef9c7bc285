"""The estimate of `--dry-run` beside what was measured."""

from __future__ import annotations

import re

import pytest

from eri_export.commands.export_time import estimate_export_time
from eri_export.embedded.assemble import assembled
from eri_export.plan.plan import make_plan
from eri_runtime.bundle import read_bundle
from eri_runtime.commands.main import main

# seconds of a core that an export took, on two shared cores with other load
MEASURED = {
    "sd35_checkpoint": 46.1,
    "sd35": 63.4,
    "flux": 54.3,
}


@pytest.mark.parametrize("name", MEASURED)
def test_an_estimate_is_within_a_factor_of_one_and_a_half(name, request):
    if name.endswith("checkpoint"):
        estimate = estimate_export_time(make_plan(request.getfixturevalue(name)))
    else:
        with assembled(name) as checkpoint:
            estimate = estimate_export_time(make_plan(checkpoint))
    assert 1 / 1.5 < estimate.total / MEASURED[name] < 1.5


@pytest.mark.parametrize("family", ["sd35", "sdxl", "flux"])
def test_bytes_and_seconds_of_a_dry_run_add_up(family, request, capsys):
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    bundle = read_bundle(request.getfixturevalue(f"{family}_bundle"))
    plan = make_plan(checkpoint)
    assert sum(plan.weights.values()) == plan.nbytes
    for name, spec in bundle.components.items():
        size = bundle.files[spec.weights].size
        assert 1 / 1.5 < plan.weights[name] / size < 1.5, name
    assert main(["export", str(checkpoint), "-o", "nowhere", "--dry-run"]) == 0
    said = capsys.readouterr().out
    total, *parts = (
        int(number)
        for number in re.search(
            r"about (\d+) s: trace (\d+) s, write (\d+) s, compare (\d+) s", said
        ).groups()
    )
    assert total == sum(parts)
