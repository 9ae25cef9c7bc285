"""Samplers by the names that people write."""

from __future__ import annotations

from contextlib import suppress

import diffusers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eri_runtime.bundle import ScheduleSpec
from eri_runtime.errors import UnknownNameError
from eri_runtime.sampling import (
    REFUSED,
    SAMPLERS,
    SCHEDULERS,
    check_spacing,
    choose_sampler,
    choose_scheduler,
    find_sampler,
    full_name,
    names_of,
    samplers_for,
    with_spacing,
)
from eri_runtime.sampling.sampler_names import CLASSES

KINDS = ("vp", "flow", "edm")
VP = ScheduleSpec(kind="vp", prediction="eps")
FLOW = ScheduleSpec(kind="flow", prediction="flow")


def spellings(name):
    return name, name.upper(), f" {name} ", name.replace("_", " "), name.replace(" ", "_")


@pytest.mark.parametrize("kind", KINDS)
def test_every_sampler_of_a_schedule_is_found_by_all_of_its_names(kind):
    fitting = list(samplers_for(kind))
    assert fitting
    for sampler in fitting:
        for name in (sampler.name, *names_of(sampler)):
            for spelling in spellings(name):
                found = find_sampler(spelling, kind)
                assert found.label == sampler.label
                assert found in fitting


@pytest.mark.parametrize("kind", KINDS)
def test_every_sampler_with_every_scheduler_behind_it_is_both(kind):
    for sampler in samplers_for(kind):
        assert full_name(sampler.name, kind) == sampler.name
        for scheduler in SCHEDULERS:
            for name in (sampler.label, sampler.name):
                assert choose_sampler(f"{name} {scheduler.label}", kind) == (sampler, scheduler)
            full = f"{sampler.name}_{scheduler.name}"
            assert full_name(full, kind) == full
            assert choose_sampler(full, kind) == (sampler, scheduler)


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_samplers_of_a_schedule_share_a_label(kind):
    labels = [sampler.label.lower() for sampler in samplers_for(kind)]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("Euler", "vp", "euler"),
        ("Euler", "flow", "flow_euler"),
        ("euler", "flow", "flow_euler"),
        ("flow_euler", "vp", "euler"),
        ("flow_euler", "edm", "euler"),
        ("heun", "flow", "flow_heun"),
        ("Euler a", "vp", "euler_a"),
        ("k_euler_ancestral", "flow", "euler_a"),
        ("euler_ancestral", "vp", "euler_a"),
        ("dpmpp_2s_ancestral", "vp", "dpmpp_2s_a"),
        ("dpm_2", "vp", "dpm2"),
        ("uni_pc", "flow", "unipc"),
        ("DPM++ 2M", "vp", "dpmpp_2m"),
        ("DPM++ 2M SDE", "vp", "dpmpp_2m_sde"),
        ("PLMS", "vp", "pndm"),
        ("EulerAncestralDiscreteScheduler", "vp", "euler_a"),
        ("DPMSolverMultistepScheduler", "flow", "dpmpp_2m"),
        ("FlowMatchEulerDiscreteScheduler", "flow", "flow_euler"),
        ("EulerDiscreteScheduler", "flow", "flow_euler"),
    ],
)
def test_a_name_means_the_sampler_of_the_schedule(name, kind, found):
    assert find_sampler(name, kind) is SAMPLERS[found]


def test_every_class_is_one_of_diffusers():
    assert [name for name in CLASSES if not hasattr(diffusers, name)] == []
    assert set(CLASSES.values()) <= SAMPLERS.keys()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Eular", "flow_euler"),
        ("DPM++ 2N", "dpmpp_2m"),
        ("DPM++ 2M Karas", "dpmpp_2m"),
        ("DPM++ 2M SDE Heun", "dpmpp_2m_sde"),
        ("DPMSolverMultistepSchedular", "dpmpp_2m"),
    ],
)
def test_an_unknown_sampler_is_told_the_nearest_and_no_list(name, near):
    with pytest.raises(UnknownNameError, match=f"did you mean '{near}'") as refused:
        find_sampler(name, "flow")
    assert sum(sampler in str(refused.value) for sampler in SAMPLERS) < 5


@pytest.mark.parametrize("name", ["", "DPM fast", "zzzz", 7, None, "x" * 100_000])
def test_other_values_are_refused(name):
    with pytest.raises(UnknownNameError, match=r"^sampler_name: got "):
        choose_sampler(name, "flow", "sampler_name")


@pytest.mark.parametrize("name", REFUSED)
def test_a_sampler_without_a_table_is_refused_with_the_reason(name):
    for spelling in spellings(name):
        with pytest.raises(UnknownNameError) as refused:
            find_sampler(spelling, "vp")
        assert refused.value.fix == REFUSED[name]


@given(st.text(max_size=12), st.sampled_from(KINDS))
def test_any_text_is_a_sampler_or_refused(name, kind):
    with suppress(UnknownNameError):
        sampler, _ = choose_sampler(name, kind)
        assert sampler in samplers_for(kind)


def test_every_scheduler_is_found_by_name_and_label():
    for scheduler in SCHEDULERS:
        assert choose_scheduler(scheduler.name) is scheduler
        assert choose_scheduler(scheduler.label.upper()) is scheduler
    with pytest.raises(UnknownNameError, match=r"got 'karas'.*did you mean 'karras'"):
        choose_scheduler("karas")


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda each: each.name)
@pytest.mark.parametrize("spec", [VP, FLOW], ids=["vp", "flow"])
def test_every_scheduler_makes_levels_of_its_own(scheduler, spec):
    words = scheduler.keywords
    spacing = check_spacing(words.get("spacing"), spec.kind, None, distilled=False)
    sampler = find_sampler("DPM++ 2M", spec.kind)
    sigmas = words.get("sigmas", "default")
    schedule = sampler.schedule(with_spacing(spec, spacing), 4, 16, sigmas)
    levels = [schedule[i].sigma for i in range(4)]
    assert levels == sorted(levels, reverse=True)
    assert set(words) <= {"spacing", "sigmas"}
