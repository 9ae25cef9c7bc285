"""A call that says nothing draws what diffusers draws, for every scheduler a checkpoint may have.

diffusers' scheduler runs the loop of its pipeline around a toy network, and our sampler runs the
same from the same seed. `tests.support.schedulers.cases` lists the configs.
"""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path

import diffusers
import pytest

from eri_export.checkpoints.scheduler_facts import SCHEDULERS, own_sampling
from eri_export.checkpoints.scheduler_settings import HIDDEN, arguments_of
from eri_export.checkpoints.training_schedule import training_schedule
from eri_runtime.errors import CheckpointError
from eri_runtime.sampling import SAMPLERS
from tests.support.schedulers.cases import CASES, DPM, EULER, FLOW, SA, UNIPC, label, sdxl
from tests.support.schedulers.loops import difference, settings
from tests.support.schedulers.stand_ins import scheduler_class

STEPS = (1, 2, 5, 20, 30)
# alpha-bar is float32 there, a thousand products long, and float64 here
TOLERANCE = 1e-4
# levels whose timestep is cut to a whole one: an error in the last digit is one timestep of 1000
CUT_TOLERANCE = 2e-3


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR, logger="diffusers")


def tolerance_of(family, config):
    """Fewer digits where a timestep is cut, and where x is 700 times the image."""
    own = own_sampling(settings(family, config))
    rounded = own.levels is not None and own.levels.timesteps in ("down", "log")
    return CUT_TOLERANCE if rounded else TOLERANCE


def steps_of(config):
    """Without runs that diffusers cannot do: a division by 0, two steps at one timestep."""
    least = 2 if config.get("shift_terminal") else 1
    if config["_class_name"] == "PNDMScheduler" and not config.get("skip_prk_steps"):
        least = 4  # it takes the first three steps with more evaluations
    most = 2 if config.get("beta_schedule") == "squaredcos_cap_v2" else 30
    return [steps for steps in STEPS if least <= steps <= most]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize("case", CASES, ids=label)
def test_it_draws_what_diffusers_draws(case):
    family, config = case
    for steps in steps_of(config):
        assert difference(family, config, steps) <= tolerance_of(family, config), steps


def test_every_scheduler_that_is_read_is_compared():
    assert {config["_class_name"] for _, config in CASES} == set(SCHEDULERS)


def test_the_guide_lists_every_scheduler_with_its_samplers():
    guide = Path(__file__).parents[3] / "docs" / "guides" / "samplers.md"
    rows = re.findall(r"^\| `(\w+Scheduler)` \| (.+?) \|", guide.read_text("utf-8"), re.MULTILINE)
    drawn = {}
    for family, config in CASES:
        drawn.setdefault(config["_class_name"], set()).add(
            own_sampling(settings(family, config)).sampler
        )
    assert {name: set(re.findall(r"`(\w+)`", samplers)) for name, samplers in rows} == drawn


@pytest.mark.parametrize("family", ["sdxl", "sd35", "flux"])
def test_every_other_scheduler_of_diffusers_is_refused_by_name(family):
    names = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    assert len(names - set(SCHEDULERS)) > 20
    for name in names - set(SCHEDULERS):
        with pytest.raises(CheckpointError, match=name):
            settings(family, {"_class_name": name})


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_arguments_are_the_classes_own(name):
    parameters = inspect.signature(scheduler_class(name)).parameters.values()
    assert arguments_of(name) == {each.name: each.default for each in parameters}


def test_options_are_the_samplers_own():
    for family, config in CASES:
        own = own_sampling(settings(family, config))
        sampler = SAMPLERS[own.sampler]
        assert set(own.options) <= set(sampler.checked(own.options)), config


def read(family, config):
    """The facts of a scheduler that the manifest takes."""
    found = settings(family, config)
    return training_schedule(found), own_sampling(found)


FLOWS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
REFUSED = [
    (sdxl("PNDMScheduler", prediction_type="sample"), "prediction_type.*sample"),
    (sdxl(SA, algorithm_type="other"), "algorithm_type.*other"),
    (sdxl(SA, predictor_order=5), "predictor_order.*5"),
    (sdxl(SA, corrector_order=2.5), "corrector_order.*2.5"),
    (sdxl(SA, variance_type="learned"), "variance_type.*learned"),
    (sdxl(SA, algorithm_type="noise_prediction", thresholding=True), "thresholding"),
    (sdxl(SA, algorithm_type="noise_prediction", **FLOWS), "algorithm_type"),
    (("flux", {"_class_name": SA, **FLOWS}), "_class_name.*SASolverScheduler.*mu"),
    (sdxl("NoSuchScheduler"), "NoSuchScheduler"),
    (sdxl(FLOW), FLOW),
    (("sd35", {"_class_name": DPM}), DPM),
    (("flux", {"_class_name": EULER}), EULER),
    (sdxl("DDPMScheduler", variance_type="learned_range"), "variance_type.*learned_range"),
    (sdxl(DPM, algorithm_type="dpmsolver"), "final_sigmas_type.*zero"),
    (sdxl(DPM, algorithm_type="sde-dpmsolver", solver_order=3), "final_sigmas_type"),
    (sdxl(DPM, algorithm_type="other"), "algorithm_type.*other"),
    (sdxl(DPM, solver_order=4), "solver_order.*4"),
    (sdxl(DPM, lambda_min_clipped=-1.0), "lambda_min_clipped.*-1"),
    (sdxl(DPM, use_flow_sigmas=True), "prediction_type"),
    (sdxl(DPM, prediction_type="flow_prediction"), "prediction_type.*flow_prediction"),
    (sdxl(UNIPC, solver_type="bh1"), "solver_type.*bh1"),
    (sdxl(UNIPC, disable_corrector=[3]), "disable_corrector"),
    (sdxl(UNIPC, lower_order_final=False), "lower_order_final"),
    (sdxl(UNIPC, predict_x0=False), "predict_x0"),
    (sdxl(EULER, beta_schedule="sigmoid"), "beta_schedule.*sigmoid"),
    (sdxl(EULER, trained_betas=[0.1, 0.2]), "trained_betas"),
    (sdxl(EULER, timestep_spacing="other"), "timestep_spacing.*other"),
    (sdxl(EULER, prediction_type="other"), "prediction_type.*other"),
    (sdxl(EULER, final_sigmas_type="other"), "final_sigmas_type.*other"),
    (sdxl("EDMEulerScheduler", prediction_type="sample"), "prediction_type.*sample"),
    (
        sdxl(DPM, use_karras_sigmas=True, use_beta_sigmas=True),
        "use_beta_sigmas: got True, expected False beside use_karras_sigmas",
    ),
    (
        sdxl(DPM, use_lu_lambdas=True, use_exponential_sigmas=True),
        "use_lu_lambdas: got True, expected False beside use_exponential_sigmas",
    ),
    (("sd35", {"_class_name": FLOW, "time_shift_type": "other"}), "time_shift_type.*other"),
]


@pytest.mark.parametrize(("case", "words"), REFUSED, ids=lambda each: str(each)[:60])
def test_what_no_sampler_follows_is_refused_by_name_with_the_way_out(case, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        read(*case)
    assert "scheduler_config.json" in str(caught.value)
