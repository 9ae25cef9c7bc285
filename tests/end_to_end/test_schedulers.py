"""A call that says nothing draws diffusers' picture, whatever the checkpoint's scheduler."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
from functools import partial

import diffusers
import numpy as np
import pytest

import eri_runtime as eri
from eri_runtime.bundle import MANIFEST, manifest
from tests.support.diffusers_pipelines import (
    CALLS,
    PIXEL_TOLERANCE,
    PROMPTS,
    generators,
    load,
)
from tests.support.schedulers.bundles import of_scheduler
from tests.support.schedulers.stand_ins import scheduler_class

# alpha-bar is float32 in diffusers, and CFG of 5 amplifies it over the steps
LATENT_TOLERANCE = 1e-3
UNCLIPPED = {"clip_sample": False}
EDM = {"sigma_min": 0.002, "sigma_max": 80.0}  # an Euler config has None
SPREAD = {"use_karras_sigmas": True}
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS = [
    ("sdxl", "EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("sdxl", "DDPMScheduler", {"clip_sample": True, "clip_sample_range": 2.0}),
    ("sdxl", "DDIMScheduler", {**UNCLIPPED, "timestep_spacing": "trailing"}),
    ("sdxl", "DDIMParallelScheduler", {"clip_sample": True, "clip_sample_range": 2.0}),
    ("sdxl", "PNDMScheduler", {"skip_prk_steps": True}),
    ("sdxl", "PNDMScheduler", {"skip_prk_steps": False}),
    ("sdxl", "SASolverScheduler", {}),
    ("sdxl", "LCMScheduler", {"original_inference_steps": 100}),
    ("sdxl", "TCDScheduler", {}),
    ("sdxl", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **SPREAD}),
    ("sdxl", "DPMSolverSinglestepScheduler", {"solver_order": 3}),
    ("sdxl", "DEISMultistepScheduler", {}),
    ("sdxl", "UniPCMultistepScheduler", {"solver_order": 3}),
    ("sdxl", "EDMDPMSolverMultistepScheduler", EDM),
    ("sdxl", "EDMEulerScheduler", EDM),
    ("sd35", "UniPCMultistepScheduler", {**FLOW_SIGMAS, "flow_shift": 3.0}),
    ("sd35", "SASolverScheduler", {**FLOW_SIGMAS, "flow_shift": 3.0}),
    ("sd35", "FlowMatchLCMScheduler", {"shift": 3.0}),
    ("flux", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ("flux", "DPMSolverMultistepScheduler", {**FLOW_SIGMAS, "use_dynamic_shifting": True}),
]


def drawn(theirs, words, output_type):
    """diffusers' images; its flow pipelines forget to pass their generators to the scheduler."""
    streams, step = generators([7, 2]), type(theirs.scheduler).step
    forgotten = not isinstance(theirs, diffusers.StableDiffusionXLPipeline)
    if forgotten and "generator" in inspect.signature(step).parameters:
        theirs.scheduler.step = partial(step, theirs.scheduler, generator=streams)
    return theirs(**words, generator=streams, output_type=output_type).images


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # diffusers' DEIS
@pytest.mark.parametrize(("family", "name", "changes"), SCHEDULERS)
def test_a_call_that_says_nothing_is_diffusers_picture(request, tmp_path, family, name, changes):
    theirs, bundle = load(request, family)
    theirs.scheduler = scheduler_class(name).from_config(theirs.scheduler.config, **changes)
    words = {"prompt": PROMPTS, "height": 32, "width": 48, "num_inference_steps": 5}
    words |= CALLS[family][1]
    final = drawn(theirs, words, "latent").numpy()
    pixels = drawn(theirs, words, "np")
    with eri.load(of_scheduler(bundle, tmp_path / "bundle", theirs.scheduler)) as ours:
        result = ours(**words, seed=[7, 2], output_type="np")
    assert result.latents.shape == final.shape
    assert np.abs(result.latents - final).max() <= LATENT_TOLERANCE * np.abs(final).max()
    assert np.abs(result.images - pixels).max() <= PIXEL_TOLERANCE


def test_words_of_the_call_override_the_schedulers(request, tmp_path):
    _, bundle = load(request, "sdxl")
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=3, use_karras_sigmas=True)
    folder = of_scheduler(bundle, tmp_path / "bundle", scheduler)
    with eri.load(folder) as ours:
        own = ours.request("a heart")
        assert (own.sampler.name, own.options["order"]) == ("unipc", 3)
        assert own.levels.spread == "karras"
        assert ours.request("a heart", sigmas="simple").levels is None
        assert ours.request("a heart", sampler_options={"order": 1}).options["order"] == 1
        other = ours.request("a heart", sampler="euler")
        assert (other.levels, other.options) == (None, {})


def test_the_vaes_own_mean_and_std_are_honoured(request, tmp_path):
    theirs, bundle = load(request, "sdxl")
    mean, std = [0.1, -0.4, 0.3, 0.02], [1.2, 0.7, 0.9, 1.4]
    theirs.vae.register_to_config(latents_mean=mean, latents_std=std)
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    old = eri.read_bundle(folder)
    latents = dataclasses.replace(old.latents, mean=tuple(mean), std=tuple(std))
    text = manifest.dump(dataclasses.replace(old, latents=latents))
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    words = {"prompt": PROMPTS[:1], "height": 32, "width": 48, "num_inference_steps": 2}
    pixels = theirs(**words, guidance_scale=5.0, generator=generators([7]), output_type="np").images
    with eri.load(folder) as ours:
        mine = ours(**words, guidance_scale=5.0, seed=7, output_type="np").images
    assert np.abs(mine - pixels).max() <= PIXEL_TOLERANCE
