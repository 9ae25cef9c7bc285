"""A call's spacing is that of a checkpoint whose scheduler has it."""

from __future__ import annotations

import numpy as np
import pytest

from eri_export.checkpoints.scheduler_facts import own_sampling
from eri_export.checkpoints.scheduler_settings import arguments_of
from eri_export.checkpoints.training_schedule import training_schedule
from eri_runtime import load
from eri_runtime.errors import UnknownNameError, UsageError
from eri_runtime.sampling import SAMPLERS, check_spacing, with_spacing
from tests.support.schedulers.cases import CASES, SPACINGS, label
from tests.support.schedulers.loops import TOKENS, run_diffusers, run_ours, settings, table_of

# alpha-bar is float32 there, a thousand products long, and float64 here
TOLERANCE = 1e-4
SPACED = [
    (family, config)
    for family, config in CASES
    if "timestep_spacing" in config and "timestep_spacing" in arguments_of(config["_class_name"])
]


def spread_over_training(case):
    levels = own_sampling(settings(*case)).levels
    return levels is not None and levels.span == "training" and levels.spread != "none"


@pytest.mark.parametrize(
    "case", [case for case in SPACED if not spread_over_training(case)], ids=label
)
def test_the_table_is_that_of_a_scheduler_with_this_spacing(case):
    family, config = case
    for spacing in set(SPACINGS) - {config["timestep_spacing"]}:
        theirs = {**config, "timestep_spacing": spacing}
        for steps in (1, 2, 7):
            mine, _ = table_of(family, config, steps, spacing)
            expected, _ = table_of(family, theirs, steps)
            for name in ("points", "A", "B", "C", "c_in", "c_out", "scale"):
                one, other = (getattr(each, name) for each in (mine, expected))
                if name == "points":
                    one, other = one.sigma, other.sigma
                np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-12)


OWN = {config["_class_name"]: (family, config) for family, config in reversed(SPACED)}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", OWN)
def test_few_steps_are_diffusers_with_this_spacing(name, spacing):
    """A call's spacing on a checkpoint of another, where the ends of a schedule are most of it."""
    family, config = OWN[name]
    for steps in (1, 2, 3):
        theirs = run_diffusers(family, {**config, "timestep_spacing": spacing}, steps)
        for own in SPACINGS:
            ours = {**config, "timestep_spacing": own}
            mine = run_ours(family, ours, steps, spacing=spacing)
            assert np.abs(mine - theirs).max() <= TOLERANCE * np.abs(theirs).max(), (own, steps)


def test_the_last_level_of_a_flow_is_that_of_its_spacing():
    read = settings("flux", {"_class_name": "FlowMatchEulerDiscreteScheduler"})
    spec, euler = training_schedule(read), SAMPLERS["flow_euler"]
    last = {
        each: euler.schedule(with_spacing(spec, each), 4, TOKENS).sigma[-2]
        for each in ("trailing", "linspace")
    }
    assert last == {"trailing": 1 / 4, "linspace": 1 / 1000}


@pytest.fixture(scope="module")
def pipe(sdxl_bundle):
    with load(sdxl_bundle) as pipe:
        yield pipe


def test_a_call_names_it(pipe):
    request = pipe.request("a cat", spacing="trailing", num_inference_steps=4)
    assert pipe.schedule(request).t.tolist() == [999, 749, 499, 249, 0]
    assert pipe.schedule(pipe.request("a cat", num_inference_steps=4)).t[0] == 751
    other = pipe.request("a cat", sampler="ddim", spacing="linspace", num_inference_steps=4)
    assert pipe.schedule(other).t.tolist() == [999, 666, 333, 0, 0]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"spacing": "even"}, UnknownNameError, "'even', expected one of leading, trailing, lins"),
        ({"spacing": 3}, UnknownNameError, "spacing: got 3"),
        ({"spacing": "trailing", "sampler": "lcm"}, UsageError, "timesteps of a distillation"),
        ({"spacing": "trailing", "sigmas": [9.0, 1.0]}, UsageError, "one of them"),
    ],
)
def test_refused_by_name(pipe, words, error, message):
    with pytest.raises(error, match=message):
        pipe.request("a cat", **words)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "EDM's levels"),
        ({"_class_name": "TCDScheduler"}, "timesteps of a distillation"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
            "karras levels over all of training",
        ),
        (
            {
                "_class_name": "UniPCMultistepScheduler",
                "use_flow_sigmas": True,
                "prediction_type": "flow_prediction",
            },
            r"levels between N \+ 1 even ones",
        ),
    ],
)
def test_levels_that_no_spacing_changes_refuse_one(config, message):
    read = settings("sdxl", config)
    kind, levels = training_schedule(read).kind, own_sampling(read).levels
    with pytest.raises(UsageError, match=message):
        check_spacing("trailing", kind, levels, distilled=False)
