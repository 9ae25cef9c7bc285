"""Flux's embedded guidance: added as in diffusers, and left out of an image where it is below 0."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from eri_export import open_checkpoint
from eri_export.gate.cases import cases_of
from eri_export.gate.parity import compare
from eri_export.graphs.recipes.base import fixed, float_input, uniform
from eri_export.graphs.recipes.flux import Flux, flux_recipe
from eri_export.graphs.recipes.sizes import Frame
from eri_export.plan.plan import spec_of
from eri_runtime.bundle import manifest
from eri_runtime.bundle.spec import ShapeRange
from eri_runtime.executors.ort.session import OrtExecutor
from tests.support.components import up_to, write_component

TOLERANCE = 1e-4  # of the largest value: float32 on both sides, but other kernels
ROWS, COLUMNS, TOKENS = 3, 2, 7


@pytest.fixture(scope="module")
def flux(flux_checkpoint):
    """diffusers' network of the tiny checkpoint with guidance."""
    return FluxTransformer2DModel.from_pretrained(flux_checkpoint / "transformer").eval()


def inputs(*guidance):
    """Inputs of the contract, one row for each value of `guidance`."""
    rng, batch = np.random.default_rng(0), len(guidance)
    place = np.indices((ROWS, COLUMNS)).reshape(2, -1).T
    arrays = {
        "sample": rng.standard_normal((batch, len(place), 64)),
        "timestep": np.linspace(900, 100, batch),
        "encoder_hidden_states": rng.standard_normal((batch, TOKENS, 64)),
        "pooled_projections": rng.standard_normal((batch, 32)),
        "img_ids": np.concatenate([np.zeros((len(place), 1)), place], axis=1),
        "txt_ids": np.zeros((TOKENS, 3)),
        "guidance": np.array(guidance),
    }
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def graph_gives(bundle_root, given):
    bundle = manifest.read(bundle_root)
    spec = bundle.components["denoiser"]
    with OrtExecutor(bundle.path(spec.graph), spec) as executor:
        return executor.run(given)["output"]


@torch.no_grad()
def diffusers_gives(flux, given, zeroed=()):
    """Without change, or with what the guidance embedder gives for the rows `zeroed` made zeros."""

    def without(_module, _given, made):
        made = made.clone()
        made[list(zeroed)] = 0
        return made

    named = {name: torch.from_numpy(value) for name, value in given.items()}
    sample, timestep = named.pop("sample"), named.pop("timestep") / 1000
    hook = flux.time_text_embed.guidance_embedder.register_forward_hook(without) if zeroed else None
    try:
        return flux(hidden_states=sample, timestep=timestep, **named).sample.numpy()
    finally:
        if hook is not None:
            hook.remove()


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error <= TOLERANCE, f"outputs differ by {error:.2e}"


@pytest.mark.parametrize(
    ("guidance", "zeroed"),
    [
        ((-1,), [0]),
        ((-1, 3.5), [0]),
        ((3.5, -1), [1]),
        ((-1e-3, -100, 0, 8), [0, 1]),
    ],
)
def test_a_guidance_below_0_leaves_its_embedding_out(flux, flux_bundle, guidance, zeroed):
    given = inputs(*guidance)
    ours = graph_gives(flux_bundle, given)
    assert_close(ours, diffusers_gives(flux, given, zeroed))
    added = diffusers_gives(flux, given)
    for row in range(len(guidance)):
        difference = np.abs(ours[row] - added[row]).max() / np.abs(added).max()
        assert (difference > 100 * TOLERANCE) == (row in zeroed), "the embedding must matter"


@pytest.mark.parametrize("guidance", [(0.0,), (-0.0,), (1.0, 3.5), (0.0, 10.0, 4.0)])
def test_a_guidance_from_0_is_diffusers(flux, flux_bundle, guidance):
    given = inputs(*guidance)
    assert_close(graph_gives(flux_bundle, given), diffusers_gives(flux, given))


@torch.no_grad()
def test_the_gates_network_is_diffusers_to_the_bit(flux):
    """What graphs are compared with is no network of our own, and is left as it was."""
    given = inputs(0.0, 1.0, 3.5)
    # thousandths that a division by 1000 and a product with 1/1000 round alike
    given["timestep"] = np.array([1000, 500, 250], np.float32)
    ours = Flux(flux, torch.float32)(*map(torch.from_numpy, given.values())).numpy()
    np.testing.assert_array_equal(ours, diffusers_gives(flux, given))
    embedder = flux.time_text_embed.guidance_embedder
    assert not embedder._forward_hooks
    assert not flux.time_text_embed._forward_pre_hooks


def recipe_of(checkpoint, precision):
    side = ShapeRange(min=2, opt=8, max=16)
    frame = Frame(unit=2, height=side, width=side)
    return flux_recipe(open_checkpoint(checkpoint).denoiser, precision, frame, up_to(16, 32))


def test_the_gate_draws_guidance_that_is_one(flux_checkpoint):
    cases, _ = cases_of(recipe_of(flux_checkpoint, "fp32"), None)
    drawn = np.concatenate([case.inputs["guidance"] for case in cases])
    assert len(drawn) > len(cases)
    assert drawn.min() >= 1


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sixteen_bits_leave_it_out_alike(flux_checkpoint, tmp_path, shared_trace, precision):
    """The gate itself, on guidance on both sides of 0."""
    recipe = recipe_of(flux_checkpoint, precision)
    # fixed sizes are traced in a third of the time
    rows = ShapeRange(min=1, opt=8, max=8)
    recipe = fixed(dataclasses.replace(recipe, ranges={**recipe.ranges, "batch": rows}))
    mixed = float_input("guidance", "batch", draw=uniform(-8, 8))
    assert recipe.inputs[-1].spec == mixed.spec
    recipe = dataclasses.replace(recipe, inputs=(*recipe.inputs[:-1], mixed))
    cases, _ = cases_of(recipe, None)
    drawn = np.concatenate([case.inputs["guidance"] for case in cases])
    assert drawn.min() < 0 < drawn.max()
    graph = write_component(shared_trace(recipe), recipe, tmp_path)
    assert compare(recipe, graph, spec_of(recipe), None).report
