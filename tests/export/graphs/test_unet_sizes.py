"""A UNet of three levels takes latents of any height and width, as diffusers' does."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from eri_export.plan.plan import make_plan, spec_of
from eri_runtime.executors.ort.session import OrtExecutor
from tests.support.checkpoints import randomised
from tests.support.components import write_component

TOLERANCE = 2e-5  # of the largest value: float32 on both sides, but other kernels
LEVELS = {
    "block_out_channels": (8, 16, 32),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 1,
    "attention_head_dim": 2,
}
# each side is halved twice: exactly, with one remainder, with both
SIZES = ((16, 12), (17, 25), (18, 19), (5, 64), (3, 2), (1, 1), (63, 34))


@pytest.fixture(scope="module")
def network(sdxl_checkpoint):
    """diffusers' network, three levels deep, with the conditions of the tiny checkpoint."""
    config = UNet2DConditionModel.load_config(sdxl_checkpoint / "unet")
    return randomised(UNet2DConditionModel.from_config({**config, **LEVELS}), 0).eval()


@pytest.fixture(scope="module")
def recipe(network, sdxl_checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("three") / "sdxl"
    shutil.copytree(sdxl_checkpoint, root, ignore=shutil.ignore_patterns("unet"))
    network.save_pretrained(root / "unet")
    (recipe,) = (each for each in make_plan(root).recipes if each.name == "denoiser")
    return recipe


@pytest.fixture(scope="module")
def executor(recipe, shared_trace, tmp_path_factory):
    graph = write_component(shared_trace(recipe), recipe, tmp_path_factory.mktemp("denoiser"))
    with OrtExecutor(graph, spec_of(recipe)) as executor:
        yield executor


@torch.no_grad()
def reference(network, given):
    """What diffusers' own network gives, without the exporter's wrapper."""
    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    names = ("sample", "timestep", "encoder_hidden_states")
    conditions = {name: each for name, each in tensors.items() if name not in names}
    return network(*(tensors[name] for name in names), added_cond_kwargs=conditions)[0].numpy()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_graph_gives_what_diffusers_gives(height, width, recipe, network, executor):
    sizes = {"batch": 2, "height": height, "width": width, "tokens": 16}
    given = recipe.sample(sizes, seed=height)
    expected = reference(network, given)
    found = executor.run(given)["output"]
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_parity_is_checked_at_sizes_that_cannot_be_halved(recipe):
    sides = {each[name] for each in recipe.sizes[1:] for name in ("height", "width")}
    assert any(side % 2 for side in sides)
    assert recipe.ranges["height"].min == recipe.ranges["width"].min == 1
