"""The guidance embedding of LCM's UNets: the pipeline's, and left out where it is below 0."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    LCMScheduler,
    StableDiffusionXLPipeline,
    TCDScheduler,
    UNet2DConditionModel,
)

import eri_runtime as eri
from eri_export.checkpoints.sources.folder import open_part
from eri_export.graphs.recipes.base import fixed
from eri_export.graphs.recipes.sizes import Frame
from eri_export.graphs.recipes.unet import unet_recipe
from eri_export.plan.plan import spec_of
from eri_runtime.bundle import MANIFEST, manifest
from eri_runtime.bundle.spec import FileRecord, ShapeRange
from eri_runtime.executors.ort.session import OrtExecutor
from eri_runtime.request.arguments import check_guidance
from eri_runtime.text import Condition, condition_inputs
from tests.support.checkpoints import randomised
from tests.support.components import up_to, write_component
from tests.support.diffusers_pipelines import PIXEL_TOLERANCE, PROMPTS, generators
from tests.support.schedulers.bundles import of_scheduler

TOLERANCE = 1e-4  # of the largest value: float32 on both sides, but other kernels
WIDTH = 16  # of the embedding
# fixed ones, which are traced in a third of the time
SIZES = {
    "batch": ShapeRange(min=1, opt=3, max=4),
    "height": ShapeRange(min=2, opt=8, max=12),  # of latents: diffusers takes multiples of 4
    "width": ShapeRange(min=2, opt=12, max=12),
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
    side = ShapeRange(min=2, opt=8, max=32)
    frame = Frame(unit=2, height=side, width=side)
    recipe = unet_recipe(source, "fp32", frame, 16, up_to(16, 32))
    recipe = fixed(dataclasses.replace(recipe, ranges={**recipe.ranges, **SIZES}))
    return write_component(shared_trace(recipe), recipe, folder / "out"), spec_of(recipe)


def inputs(*guidance):
    rng, batch = np.random.default_rng(0), len(guidance)
    arrays = {
        "sample": rng.standard_normal((batch, 4, 8, 12)),
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


@pytest.fixture(scope="module")
def whole_bundle(sdxl_bundle, graph, tmp_path_factory):
    """The tiny SDXL's bundle with this UNet, as the export of an LCM would write it."""
    file, spec = graph
    folder = shutil.copytree(sdxl_bundle, tmp_path_factory.mktemp("whole") / "lcm")
    shutil.rmtree(folder / "denoiser")
    shutil.copytree(file.parent, folder / "denoiser")
    old = manifest.read(sdxl_bundle)
    kept = {name: each for name, each in old.files.items() if not name.startswith("denoiser/")}
    new = {f"denoiser/{each.name}": record(each) for each in (folder / "denoiser").iterdir()}
    changed = dataclasses.replace(
        old,
        components={**old.components, "denoiser": spec},
        files={**kept, **new},
        guidance_embedding=True,
    )
    (folder / MANIFEST).write_text(manifest.dump(changed), encoding="utf-8")
    return folder


def record(file):
    content = file.read_bytes()
    return FileRecord(size=len(content), sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    ("scheduler", "changes"),
    [(LCMScheduler, {}), (LCMScheduler, {"clip_sample": True}), (TCDScheduler, {})],
)
def test_four_steps_are_diffusers_picture(
    unet, whole_bundle, sdxl_checkpoint, tmp_path, scheduler, changes
):
    theirs = StableDiffusionXLPipeline.from_pretrained(sdxl_checkpoint, unet=unet)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = scheduler.from_config(theirs.scheduler.config, **changes)
    words = {"prompt": [*PROMPTS, "an oak"], "height": 16, "width": 24}  # the graph's one size
    words |= {"num_inference_steps": 4, "guidance_scale": 8.0, "output_type": "np"}
    seeds = [7, 2, 5]
    pixels = theirs(**words, generator=generators(seeds)).images
    weak = theirs(**words | {"guidance_scale": 1.0}, generator=generators(seeds)).images
    with eri.load(of_scheduler(whole_bundle, tmp_path / "bundle", theirs.scheduler)) as ours:
        mine = ours(**words, seed=seeds).images
    assert np.abs(mine - pixels).max() <= PIXEL_TOLERANCE
    assert np.abs(weak - pixels).max() > PIXEL_TOLERANCE, "the guidance must matter"
