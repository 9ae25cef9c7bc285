"""diffusers' pipelines of the tiny checkpoints, beside which pictures are drawn."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline

PROMPTS = ["a red heart", "two black cats and one white dog"]
# float32 on both sides, but other kernels: rounding differs, and the steps of CFG amplify it
LATENT_TOLERANCE = 1e-4
PIXEL_TOLERANCE = 2 / 255
CALLS = {
    "sdxl": (StableDiffusionXLPipeline, {"guidance_scale": 5.0}),
    "sd35": (StableDiffusion3Pipeline, {"guidance_scale": 5.0, "max_sequence_length": 20}),
    "flux": (FluxPipeline, {"guidance_scale": 3.5, "max_sequence_length": 20}),
}


def load(request, family):
    """diffusers' pipeline of a tiny checkpoint, and our bundle of it."""
    theirs = CALLS[family][0].from_pretrained(request.getfixturevalue(f"{family}_checkpoint"))
    theirs.set_progress_bar_config(disable=True)
    return theirs, request.getfixturevalue(f"{family}_bundle")


def generators(seeds):
    """A fresh CPU generator for each image."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def assert_same_latents(mine, theirs):
    assert mine.shape == theirs.shape
    error = np.abs(mine - theirs).max() / np.abs(theirs).max()
    assert error <= LATENT_TOLERANCE, f"latents differ by {error:.2e}"
