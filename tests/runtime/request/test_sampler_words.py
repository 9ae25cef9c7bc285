"""A call's sampler and noise levels by the names that people write, and that a PNG says."""

from __future__ import annotations

import pytest

from eri_runtime.bundle import manifest
from eri_runtime.errors import UsageError
from eri_runtime.request import make_request
from eri_runtime.sampling import SAMPLERS, samplers_for


@pytest.fixture(params=["sdxl", "sd35"])
def bundle(request):
    return manifest.read(request.getfixturevalue(f"{request.param}_bundle"))


def asked(bundle, **words):
    found = make_request(bundle, "a fox", None, words)
    return found.sampler.name, found.sigmas, found.spacing


def test_a_schedulers_name_behind_the_sampler_is_the_levels(bundle):
    assert asked(bundle, sampler="DPM++ 2M Karras") == ("dpmpp_2m", "karras", None)
    assert asked(bundle, sampler="dpm++ 2m sgm uniform") == ("dpmpp_2m", "default", "trailing")
    assert asked(bundle, sampler="DPM++ 2M", sigmas="SGM Uniform")[2] == "trailing"
    assert asked(bundle, sampler="DPM++ 2M Karras", sigmas="karras")[1] == "karras"
    assert asked(bundle, sampler="DPM++ 2M", sigmas="Automatic") == ("dpmpp_2m", "default", None)


@pytest.mark.parametrize(
    ("words", "offender"),
    [
        ({"sampler": "DPM++ 2M Karras", "sigmas": "beta"}, "sigmas"),
        ({"sampler": "DPM++ 2M Karras", "sigmas": [1.0, 0.5]}, "sigmas"),
        ({"sampler": "DPM++ 2M SGM Uniform", "spacing": "linspace"}, "spacing"),
        ({"sigmas": "SGM Uniform", "spacing": "linspace"}, "spacing"),
    ],
)
def test_levels_that_are_said_twice_in_two_ways_are_refused(bundle, words, offender):
    with pytest.raises(UsageError, match=f"^{offender}: got .* and "):
        asked(bundle, **words)


def test_a_png_says_the_name_that_the_argument_takes(bundle):
    for sampler in samplers_for(bundle.schedule.kind):
        assert asked(bundle, sampler=sampler.label)[0] == sampler.name
    twins = {"euler": "flow_euler", "heun": "flow_heun"}
    for name, twin in twins.items():
        own = twin if bundle.schedule.kind == "flow" else name
        assert {asked(bundle, sampler=each)[0] for each in (name, twin)} == {own}
        assert SAMPLERS[name].label == SAMPLERS[twin].label
