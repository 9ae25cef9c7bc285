"""LoRAs in published names: what they add to the published tensors is what they add to ours.

The published tensors are made from ours by the tests' own rewriting, which shares nothing with the
tables under test; diffusers' converters are asked at Flux's full size.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from diffusers.loaders import lora_conversion_utils as converters

from eri_runtime.weights.lora import adapters
from eri_runtime.weights.published_keys import unet
from tests.support.loras import (
    KOHYA,
    as_torch,
    base_weights,
    dotted,
    kohya,
    low_rank,
    modules,
    ours,
)
from tests.support.single_file_keys import bfl_flux, ldm_unet, sd3_mmdit

PUBLISHED = {"sdxl": ldm_unet, "sd35": sd3_mmdit, "flux": bfl_flux}
NAMES = {
    "kohya": (kohya("lora_unet_"), KOHYA),
    "comfy": (dotted("diffusion_model."), KOHYA),
    "peft": (dotted("base_model.model."), (".lora_A.weight", ".lora_B.weight")),
    "bfl": (dotted(""), (".lora_A.weight", ".lora_B.weight")),
}


@pytest.mark.parametrize("naming", NAMES)
@pytest.mark.parametrize("family", PUBLISHED)
def test_every_matrix_and_convolution_of_a_published_file(request, family, naming):
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    publish = PUBLISHED[family]
    before = publish(as_torch(base_weights(checkpoint)["denoiser"]))
    name, ends = NAMES[naming]
    shapes = modules(before)
    lora = low_rank(shapes, name, ends)
    after = publish(as_torch(ours(checkpoint, family, lora, 0.5)["denoiser"]))
    for module, shape in shapes.items():
        down, up = (lora[name(module) + end] for end in ends)
        change = 0.5 * (up.reshape(shape[0], -1) @ down.reshape(len(down), -1)).reshape(shape)
        expected = before[f"{module}.weight"] + torch.from_numpy(change)
        error = (after[f"{module}.weight"] - expected).abs().max() / expected.abs().max()
        assert error <= 1e-5, module
    untouched = before.keys() - {f"{module}.weight" for module in shapes}
    assert all(torch.equal(after[key], before[key]) for key in untouched)
    assert len(shapes) > 20


def test_biases_and_norms_of_a_published_flux(flux_checkpoint):
    """A control LoRA of Black Forest Labs changes biases, and brings its own norms."""
    before = bfl_flux(as_torch(base_weights(flux_checkpoint)["denoiser"]))
    lora = low_rank(modules(before), dotted(""))
    rng = np.random.default_rng(1)
    biases = {key: len(value) for key, value in before.items() if key.endswith(".bias")}
    norms = [key for key in before if key.endswith("_norm.scale")]
    changes = {key: rng.normal(size=size).astype(np.float32) for key, size in biases.items()}
    for key, change in changes.items():
        lora[key.removesuffix(".bias") + ".lora_B.bias"] = change
    for key in norms:
        lora[key] = rng.normal(size=len(before[key])).astype(np.float32)
    after = bfl_flux(as_torch(ours(flux_checkpoint, "flux", lora)["denoiser"]))
    for key, change in changes.items():
        assert np.allclose(after[key], before[key].numpy() + change, rtol=1e-6, atol=1e-6), key
    for key in norms:
        assert np.array_equal(after[key], lora[key]), key
    assert len(norms) == 8
    assert len(biases) > 10


@pytest.fixture(scope="module")
def full_flux():
    """Names and shapes of Flux-dev's transformer."""
    with torch.device("meta"):
        state = FluxTransformer2DModel(guidance_embeds=True).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


def full_size(names, drop=()):
    """The published shapes of Flux-dev, and those of its matrices by module."""
    state = {name: torch.empty(shape, device="meta") for name, shape in names.items()}
    shapes = {key: tuple(value.shape) for key, value in bfl_flux(state).items()}
    matrices = {
        key.removesuffix(".weight"): shape
        for key, shape in shapes.items()
        if len(shape) == 2 and not key.startswith(drop)
    }
    return matrices, shapes


def probed(down, up):
    """An update by what it does to four fixed inputs."""
    return up @ (down @ np.random.default_rng(3).normal(size=(down.shape[1], 4)))


def compare(found, converted):
    """Each update as diffusers' converter splits it."""
    expected = {key.removesuffix(".lora_A.weight") for key in converted if "lora_A.weight" in key}
    assert {f"{key}.weight" for key in strip(expected)} == {
        name for name in found if name.endswith(".weight") and ".norm_" not in name
    }
    for key in expected:
        down, up = (converted[f"{key}.lora_{half}.weight"].numpy() for half in "AB")
        (name,) = strip([key])
        (change,) = found[f"{name}.weight"]
        if name == "norm_out.linear":
            down = swapped_back(down)
        theirs = probed(down, up)
        assert np.abs(probed(*change.low_rank) - theirs).max() <= 1e-5 * np.abs(theirs).max(), name


# diffusers' converter of control LoRAs swaps the halves of the rank too, which is no swap of rows
def swapped_back(down):
    return np.roll(down, len(down) // 2, axis=0)


def strip(keys):
    return {key.removeprefix("transformer.") for key in keys}


def test_kohya_of_a_full_size_flux_splits_as_diffusers_does(full_flux):
    matrices, _ = full_size(full_flux, drop="final_layer")  # alphas unread by diffusers
    lora = low_rank(matrices, kohya("lora_unet_"), KOHYA, rank=2, alpha=0.5)
    found = adapters(lora, "flux", {"denoiser": full_flux})["denoiser"]
    compare(found, converters._convert_kohya_flux_lora_to_diffusers(as_torch(lora)))
    assert len(found) == 502


def test_bfl_of_a_full_size_flux_splits_as_diffusers_does(full_flux):
    matrices, shapes = full_size(full_flux)
    lora = low_rank(matrices, dotted(""), rank=2)
    rng = np.random.default_rng(2)
    for key, shape in shapes.items():
        if key.endswith(".scale"):
            lora[key] = rng.normal(size=shape).astype(np.float32)
        if key.endswith(".bias"):
            lora[key.removesuffix(".bias") + ".lora_B.bias"] = rng.normal(size=shape).astype("f4")
    found = adapters(lora, "flux", {"denoiser": full_flux})["denoiser"]
    converted = converters._convert_bfl_flux_control_lora_to_diffusers(as_torch(lora))
    compare(found, converted)
    for key, value in converted.items():
        name = key.removeprefix("transformer.").replace(".lora_B.bias", ".bias")
        if name.endswith(".bias") or ".norm_" in name:
            base = np.zeros(full_flux[name], np.float32)
            ((change,), expected) = found[name], value.numpy()
            assert np.allclose(change.merged(base, 1), expected, rtol=1e-6, atol=1e-7), name
    assert set(found) == set(full_flux)


@pytest.mark.parametrize("types", ["CrossAttn CrossAttn Plain", "Plain CrossAttn Plain"])
def test_a_deep_unet_has_the_same_table_from_either_side(types):
    """From published names, which end a level by its sampler, and from diffusers', which nest."""
    ups = [f"{kind}UpBlock2D".removeprefix("Plain") for kind in types.split()]
    with torch.device("meta"):
        state = UNet2DConditionModel(
            block_out_channels=(32, 32, 64),
            down_block_types=[each.replace("Up", "Down") for each in reversed(ups)],
            up_block_types=ups,
            transformer_layers_per_block=(1, 2, 3),
            use_linear_projection=True,
        ).state_dict()
    published = ldm_unet(state)
    from_names = {entry for entry in unet.entries(state) if entry.name in state}
    from_keys = {entry for entry in unet.entries(published) if entry.key in published}
    assert from_names == from_keys
    assert {entry.name for entry in from_names} == set(state)
    assert {entry.key for entry in from_names} == set(published)
