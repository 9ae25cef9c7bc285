"""Nobody may add a key to a config's class without deciding what becomes of it."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
from transformers import CLIPTextConfig, T5Config

from eri_export.checkpoints import Component
from eri_export.checkpoints.config_keys import (
    CLIP,
    NETWORKS,
    SCHEDULER,
    T5,
    UNREAD,
    check_keys,
    honoured_keys,
)
from eri_export.checkpoints.scheduler_facts import SCHEDULERS
from eri_export.checkpoints.scheduler_settings import arguments_of
from eri_runtime.errors import CheckpointError
from tests.support.schedulers.cases import sdxl
from tests.support.schedulers.loops import run_diffusers


def arguments(kind):
    return set(inspect.signature(kind).parameters) - {"kwargs"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_argument_of_a_scheduler_is_decided_on(name):
    assert set(arguments_of(name)) - set(SCHEDULER) == set()


def test_no_decision_is_about_a_key_that_no_scheduler_has():
    assert set(SCHEDULER) == {key for name in SCHEDULERS for key in arguments_of(name)}


@pytest.mark.parametrize(
    "name",
    [
        "AutoencoderKL",
        "UNet2DConditionModel",
        "SD3Transformer2DModel",
        "FluxTransformer2DModel",
    ],
)
def test_every_argument_of_a_network_is_decided_on(name):
    assert set(NETWORKS[name]) == arguments(getattr(diffusers, name))


@pytest.mark.parametrize(("kind", "decisions"), [(CLIPTextConfig, CLIP), (T5Config, T5)])
def test_every_argument_of_a_text_encoder_is_decided_on(kind, decisions):
    assert arguments(kind) - set(decisions) == set()


def test_every_decision_says_why():
    for decisions in (SCHEDULER, *NETWORKS.values()):
        for key, decision in decisions.items():
            assert decision.why, key
            assert (decision.verdict == "only") == bool(decision.values), key


def checkpoint(class_name, scheduler=None, family="sdxl", **config):
    component = Component("part", class_name, Path("folder"), config, dict)
    scheduler = {"_class_name": "EulerDiscreteScheduler", **(scheduler or {})}
    return SimpleNamespace(
        root=Path("m"),
        family=family,
        components={"part": component},
        scheduler=scheduler,
        scheduler_file=None,
    )


def test_a_scheduler_without_a_class_is_refused_by_name():
    with pytest.raises(CheckpointError, match=r"scheduler.*got class 'None'"):
        check_keys(checkpoint("AutoencoderKL", scheduler={"_class_name": None}))


REFUSED = [
    (name, key, decision)
    for name, decisions in NETWORKS.items()
    for key, decision in decisions.items()
    if decision.verdict == "only"
]


@pytest.mark.parametrize(("name", "key", "decision"), REFUSED)
def test_a_value_that_nothing_honours_is_refused_by_name(name, key, decision):
    check_keys(checkpoint(name, **{key: decision.values[0]}))
    with pytest.raises(CheckpointError, match=rf"part: {key}.*got 'another'"):
        check_keys(checkpoint(name, **{key: "another"}))


def test_the_keys_that_were_read_are_told_from_those_that_change_nothing():
    opened = checkpoint(
        "AutoencoderKL",
        scheduler={"use_karras_sigmas": True, "skip_prk_steps": True},
        scaling_factor=0.1,
        force_upcast=True,
    )
    assert list(honoured_keys(opened)) == [
        ("part", ["scaling_factor"], ["force_upcast"]),
        ("scheduler", ["use_karras_sigmas"], ["skip_prk_steps"]),
    ]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("FlowMatchEulerDiscreteScheduler", "invert_sigmas", True),
        ("FlowMatchLCMScheduler", "scale_factors", [2.0]),
        ("UniPCMultistepScheduler", "solver_p", "other"),
    ],
)
def test_a_schedulers_key_that_nothing_follows_is_refused_by_name(name, key, value):
    family = "flux" if name.startswith("Flow") else "sdxl"
    with pytest.raises(CheckpointError, match=rf"scheduler: {key}: got .*scheduler_config\.json"):
        check_keys(checkpoint("AutoencoderKL", {"_class_name": name, key: value}, family))


# another value than the class's own, for each key whose effect a run can show
OTHERS = {
    "beta_start": 0.002,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "original_inference_steps": 20,
    "clip_sample": True,
    "set_alpha_to_one": False,
    "steps_offset": 3,
    "prediction_type": "v_prediction",
    "thresholding": True,
    "timestep_spacing": "trailing",
    "timestep_scaling": 0.01,
    "rescale_betas_zero_snr": True,
}


@pytest.mark.parametrize("key", OTHERS)
@pytest.mark.parametrize("name", UNREAD)
def test_keys_are_honoured_or_without_effect_as_in_diffusers(name, key):
    """The samplers of distilled models take keys that they do not read."""
    _, config = sdxl(name, clip_sample=False)
    other = {**config, key: OTHERS[key]}
    same = np.array_equal(run_diffusers("sdxl", config, 4), run_diffusers("sdxl", other, 4))
    *_, (part, honoured, _) = honoured_keys(checkpoint("AutoencoderKL", other))
    assert (part, key in honoured) == ("scheduler", not same)
