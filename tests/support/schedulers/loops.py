"""The loop of diffusers' pipelines around a toy network, and ours for the same config."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

from eri_export.checkpoints.scheduler_facts import own_sampling, settings_of
from eri_export.checkpoints.training_schedule import training_schedule
from eri_runtime import SAMPLERS, make_table
from eri_runtime.loop.numpy_loop import identity
from eri_runtime.sampling import TorchNoise, check_spacing, scheduler_clipping, with_spacing
from tests.support.oracles import network, trajectory
from tests.support.schedulers.stand_ins import in_place, scheduler_class

SHAPE = (4, 5, 3)
SEED = 11
TOKENS = 1024


def run_diffusers(family, config, steps, seed=SEED):
    """The final x of diffusers' loop, as the family's pipeline calls the scheduler."""
    generator = torch.Generator().manual_seed(seed)
    config = dict(config)
    cls = scheduler_class(config.pop("_class_name"))
    with in_place(cls, generator), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = constructed(cls, config)
        scheduler.set_timesteps(**timestep_arguments(family, scheduler, steps))
        x = torch.randn((1, *SHAPE), generator=generator)
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        draws = "generator" in inspect.signature(scheduler.step).parameters
        more = {"generator": generator} if draws else {}
        if "eta" in inspect.signature(scheduler.step).parameters:
            more["eta"] = 0.0  # the pipelines' own
        for t in scheduler.timesteps:
            scaled = x
            if hasattr(scheduler, "scale_model_input"):
                scaled = scheduler.scale_model_input(x, t)
            x = scheduler.step(network(scaled, float(t)), t, x, **more, return_dict=False)[0]
    return x.numpy()


def constructed(cls, config):
    """A scheduler; of the 1000 steps that some constructors set, at 50 ms, one."""
    original = cls.set_timesteps
    few = mock.patch.object(cls, "set_timesteps", lambda self, *_: original(self, 2))
    with few:
        return cls.from_config(config)


def timestep_arguments(family, scheduler, steps):
    """What the pipeline passes to `set_timesteps`."""
    config, accepted = scheduler.config, inspect.signature(scheduler.set_timesteps).parameters
    most = 1.16 if family == "sd35" else 1.15
    base, span = config.get("base_shift", 0.5), config.get("base_image_seq_len", 256)
    slope = config.get("max_shift", most) - base
    slope /= config.get("max_image_seq_len", 4096) - span
    mu = {"mu": base + slope * (TOKENS - span)}
    if family == "sdxl" or (family == "sd35" and not config.get("use_dynamic_shifting")):
        return {"num_inference_steps": steps}
    if family == "sd35":
        return {"num_inference_steps": steps, **mu}
    if config.get("use_flow_sigmas") or "sigmas" not in accepted:
        mu = mu if config.get("use_dynamic_shifting") else {}
        return {"num_inference_steps": steps, **mu}
    return {"sigmas": np.linspace(1.0, 1 / steps, steps), **mu}


def settings(family, config):
    """The settings of a checkpoint with this scheduler."""
    opened = SimpleNamespace(
        root=Path("model"), family=family, scheduler=config, scheduler_file=None
    )
    return settings_of(opened)


def table_of(family, config, steps, spacing=None):
    """Our table, of a call with this spacing, and what is done to x_0."""
    read = settings(family, config)
    own, spec = own_sampling(read), with_spacing(training_schedule(read), spacing)
    assert check_spacing(spacing, spec.kind, own.levels, distilled=False) == spacing
    sampler = SAMPLERS[own.sampler]
    schedule = sampler.schedule(spec, steps, TOKENS, levels=own.levels)
    clipping = scheduler_clipping(own)
    return make_table(sampler, schedule, spec, options=own.options), clipping or identity


def run_ours(family, config, steps, seed=SEED, spacing=None):
    """The final x of our loop, in diffusers' scale."""
    table, hook = table_of(family, config, steps, spacing)
    noise = TorchNoise([seed])
    x = np.float32(table.scale) * noise(0, SHAPE)
    final = trajectory(table, x, lambda draw, shape=SHAPE: noise(draw, shape), hook=hook)[-1]
    scaled = config["_class_name"] in OVER_ALPHA
    return final / table.points.alpha[-1] if scaled else final


OVER_ALPHA = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverSDEScheduler",
)


def difference(family, config, steps):
    """The largest difference of the final x, relative to its largest value."""
    mine, theirs = run_ours(family, config, steps), run_diffusers(family, config, steps)
    return float(np.abs(mine - theirs).max() / np.abs(theirs).max())
