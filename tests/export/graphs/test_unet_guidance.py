"""The guidance embedding of LCM's UNets: the pipeline's, and left out where it is below 0."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from eri_export.checkpoints.sources.folder import open_part
from eri_export.graphs.recipes.base import fixed
from eri_export.graphs.recipes.sizes import Frame
from eri_export.graphs.recipes.unet import unet_recipe
from eri_export.plan.plan import spec_of
from eri_runtime.bundle import manifest
from eri_runtime.bundle.spec import ShapeRange
from eri_runtime.executors.ort.session import OrtExecutor
from eri_runtime.request.arguments import check_guidance
from eri_runtime.text import Condition, condition_inputs
from tests.support.checkpoints import randomised
from tests.support.components import up_to, write_component

TOLERANCE = 1e-4  # of the largest value: float32 on both sides, but other kernels
WIDTH = 16  # of the embedding
# fixed ones, which are traced in a third of the time
SIZES = {
    "batch": ShapeRange(min=1, opt=3, max=4),
    "height": ShapeRange(min=2, opt=6, max=8),
    "width": ShapeRange(min=2, opt=8, max=8),
}


@pytest.fixture(scope="module")
def unet(sdxl_checkpoint):
    """The tiny SDXL's UNet with a guidance embedding, and no middle, as KOALA-700M has none."""
    config = UNet2DConditionModel.load_config(sdxl_checkpoint / "unet")
    own = {"time_cond_proj_dim": WIDTH, "mid_block_type": None}
    return randomised(UNet2DConditionModel.from_config({**config, **own}), 7)


@pytest.fixture(scope="module")
def graph(unet, shared_trace, tmp_path_factory) -> tuple[Path, object]:
    """Its graph, and the component's spec."""
    folder = tmp_path_factory.mktemp("lcm")
    unet.save_pretrained(folder / "unet")
    source = open_part(folder / "unet", "unet", "UNet2DConditionModel")
    side = ShapeRange(min=2, opt=8, max=16)
    frame = Frame(unit=2, height=side, width=side)
    recipe = unet_recipe(source, "fp32", frame, 16, up_to(16, 32))
    recipe = fixed(dataclasses.replace(recipe, ranges={**recipe.ranges, **SIZES}))
    return write_component(shared_trace(recipe), recipe, folder / "out"), spec_of(recipe)


def inputs(*guidance):
    rng, batch = np.random.default_rng(0), len(guidance)
    arrays = {
        "sample": rng.standard_normal((batch, 4, 6, 8)),
        "timestep": np.linspace(900, 100, batch),
        "encoder_hidden_states": rng.standard_normal((batch, 16, 64)),
        "text_embeds": rng.standard_normal((batch, 32)),
        "time_ids": np.tile([48, 64, 0, 0, 48, 64], (batch, 1)),
        "guidance": np.array(guidance),
    }
    return {name: value.astype(np.float32) for name, value in arrays.items()}


@torch.no_grad()
def diffusers_gives(unet, given):
    """The network as SDXL's pipeline calls it, one row after the other; without where below 0."""
    rows = []
    for i, scale in enumerate(given["guidance"]):
        row = {name: torch.from_numpy(value[i : i + 1]) for name, value in given.items()}
        w = torch.tensor(float(scale) - 1).repeat(1)
        embed = StableDiffusionXLPipeline.get_guidance_scale_embedding
        rows.append(
            unet(
                row["sample"],
                row["timestep"],
                row["encoder_hidden_states"],
                timestep_cond=None if scale < 0 else embed(None, w, embedding_dim=WIDTH),
                added_cond_kwargs={name: row[name] for name in ("text_embeds", "time_ids")},
            ).sample.numpy()
        )
    return np.concatenate(rows)


@pytest.mark.parametrize("guidance", [(8.0, 8.5, 0.0), (1.0, 7.5, 2.25), (-1.0, 8.0, -2.0)])
def test_the_embedding_is_the_pipelines(unet, graph, guidance):
    file, spec = graph
    given = inputs(*guidance)
    with OrtExecutor(file, spec) as executor:
        ours = executor.run(given)["output"]
    theirs = diffusers_gives(unet, given)
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()
    other = diffusers_gives(unet, {**given, "guidance": given["guidance"] + 0.5})
    moved = np.abs(other - theirs).max(axis=(1, 2, 3)) / np.abs(theirs).max()
    expected = [scale + 0.5 >= 0 for scale in guidance]
    assert ((moved > 100 * TOLERANCE) == expected).all(), "the embedding must matter"


@pytest.fixture(scope="module")
def lcm_bundle(sdxl_bundle):
    """The manifest of an SDXL whose UNet embeds guidance."""
    return dataclasses.replace(manifest.read(sdxl_bundle), guidance_embedding=True)


def test_a_calls_guidance_is_embedded_and_cfg_is_off(lcm_bundle):
    guidance = check_guidance(lcm_bundle, {"guidance_scale": 8.0}, 2, 1, has_negative=True)
    assert guidance.embedded.tolist() == [8, 8]
    assert guidance.scale.tolist() == [1, 1]
    words = {"guidance_scale": 8.0, "true_cfg_scale": 2.0}
    assert check_guidance(lcm_bundle, words, 1, 1, has_negative=True).scale.tolist() == [2]
    condition = Condition(np.zeros((2, 16, 64), np.float32), np.zeros((2, 32), np.float32))
    given = condition_inputs(lcm_bundle, condition, 64, 64, guidance.embedded)
    assert given["guidance"].tolist() == [8, 8]
    assert given["time_ids"].shape == (2, 6)


def test_without_a_guidance_scale_it_is_left_out(lcm_bundle):
    words = {"guidance_scale": 8.0, "bypass_guidance": True}
    assert (check_guidance(lcm_bundle, words, 1, 1, has_negative=False).embedded < 0).all()
