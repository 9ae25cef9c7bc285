"""Samplers and schedulers by AUTOMATIC1111's names."""

from __future__ import annotations

import pytest

from eri_runtime.bundle import ScheduleSpec
from eri_runtime.errors import UnknownNameError
from eri_runtime.sampling import SAMPLERS, check_spacing, find_sampler, with_spacing
from eri_runtime.serve.http.a1111_samplers import (
    SCHEDULERS,
    aliases_of,
    choose_sampler,
    choose_scheduler,
    samplers_for,
    split_label,
)

KINDS = ("vp", "flow", "edm")
VP = ScheduleSpec(kind="vp", prediction="eps")
FLOW = ScheduleSpec(kind="flow", prediction="flow")


@pytest.mark.parametrize("kind", KINDS)
def test_every_sampler_of_a_schedule_is_found_by_all_of_its_names(kind):
    fitting = list(samplers_for(kind))
    assert fitting
    for sampler in fitting:
        assert find_sampler(sampler.name, kind) is sampler
        for name in (
            sampler.label,
            *aliases_of(sampler),
            sampler.label.upper(),
            f" {sampler.name} ",
        ):
            assert choose_sampler(name, kind) is sampler


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_samplers_of_a_schedule_share_a_label(kind):
    labels = [sampler.label.lower() for sampler in samplers_for(kind)]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("Euler", "vp", "euler"),
        ("Euler", "flow", "flow_euler"),
        ("Euler a", "vp", "euler_a"),
        ("k_euler_ancestral", "flow", "euler_a"),
        ("DPM++ 2M", "vp", "dpmpp_2m"),
        ("dpmpp_2m", "vp", "dpmpp_2m"),
        ("PLMS", "vp", "pndm"),
        ("Heun", "flow", "flow_heun"),
    ],
)
def test_a_label_means_the_sampler_of_the_schedule(name, kind, found):
    assert choose_sampler(name, kind) is SAMPLERS[found]


@pytest.mark.parametrize("name", ["", "Eular", "DDIM", "DPM fast"])
def test_an_unknown_sampler_names_those_of_the_schedule(name):
    with pytest.raises(UnknownNameError, match=r"sampler_name: got .*, expected one of .*Euler"):
        choose_sampler(name, "flow")


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("DPM++ 2M Karras", ("DPM++ 2M", "karras")),
        ("dpm++ 2m sde exponential", ("dpm++ 2m sde", "exponential")),
        ("DPM++ 2M SGM Uniform", ("DPM++ 2M", "sgm_uniform")),
        ("Euler", ("Euler", None)),
        ("Karras", ("Karras", None)),
        ("MyKarras", ("MyKarras", None)),
    ],
)
def test_old_labels_name_a_scheduler_too(label, parts):
    assert split_label(label) == parts


def test_every_scheduler_is_found_by_name_and_label():
    for scheduler in SCHEDULERS:
        assert choose_scheduler(scheduler.name) is scheduler
        assert choose_scheduler(scheduler.label.upper()) is scheduler
    with pytest.raises(UnknownNameError, match=r"got 'turbo', expected one of automatic, "):
        choose_scheduler("turbo")


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda each: each.name)
@pytest.mark.parametrize("spec", [VP, FLOW], ids=["vp", "flow"])
def test_every_scheduler_makes_levels_of_its_own(scheduler, spec):
    words = scheduler.keywords
    spacing = check_spacing(words.get("spacing"), spec.kind, None, distilled=False)
    sampler = choose_sampler("DPM++ 2M", spec.kind)
    sigmas = words.get("sigmas", "default")
    schedule = sampler.schedule(with_spacing(spec, spacing), 4, 16, sigmas)
    levels = [schedule[i].sigma for i in range(4)]
    assert levels == sorted(levels, reverse=True)
    assert set(words) <= {"spacing", "sigmas"}
