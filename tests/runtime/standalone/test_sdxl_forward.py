"""One call of SDXL's denoiser against diffusers' UNet, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

import eri_runtime as eri
from eri_runtime.errors import EriError, NonFiniteError, SizeError, UnknownNameError, UsageError
from eri_runtime.pipeline.pipeline import Pipeline
from eri_runtime.standalone.ddpm_scheduler import DDPMScheduler
from eri_runtime.standalone.sdxl_forward import forward_sdxl_sampling

normal = np.random.default_rng(0).standard_normal
H, W = 16, 24
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pipe(sdxl_bundle):
    with eri.load(sdxl_bundle) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def unet(sdxl_checkpoint):
    return UNet2DConditionModel.from_pretrained(sdxl_checkpoint / "unet").eval()


def arrays(pipe, batch=2):
    """Latent, text and pooled embeddings of a tiny SDXL, float64."""
    shapes = {tensor.name: tensor.shape for tensor in pipe.bundle.components["denoiser"].inputs}
    width, pooled = shapes["encoder_hidden_states"][-1], shapes["text_embeds"][-1]
    return normal((batch, 4, H, W)), normal((batch, 16, width)), normal((batch, pooled))


def reference(unet, latent, text, pooled, timestep, time_ids):
    tensors = [
        torch.from_numpy(np.asarray(a, np.float32)) for a in (latent, text, pooled, time_ids)
    ]
    latent, text, pooled, time_ids = tensors
    added = {"text_embeds": pooled, "time_ids": time_ids}
    with torch.no_grad():
        return unet(latent, timestep, text, added_cond_kwargs=added).sample.numpy()


def assert_close(mine, theirs):
    assert (mine.dtype, mine.shape) == (np.float32, theirs.shape)
    assert np.abs(mine - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("timestep", [0, 500.5, 999])
def test_it_is_diffusers_unet(pipe, unet, timestep, dtype):
    given = [array.astype(dtype) for array in arrays(pipe)]
    factor = pipe.bundle.latents.factor
    time_ids = np.tile([H * factor, W * factor, 0, 0, H * factor, W * factor], (2, 1))
    mine = forward_sdxl_sampling(pipe, *given, timestep)
    assert_close(mine, reference(unet, *given, timestep, time_ids))


def test_added_conditions_are_diffusers(pipe, unet):
    given, time_ids = arrays(pipe), np.array([[512, 256, 3, 5, 64, 96], [8, 8, 0, 0, 8, 8]])
    plain = forward_sdxl_sampling(pipe, *given, 10)
    mine = forward_sdxl_sampling(pipe, *given, 10, {"time_ids": time_ids})
    assert_close(mine, reference(unet, *given, 10, time_ids))
    assert np.abs(mine - plain).max() > 100 * TOLERANCE * np.abs(plain).max()
    latent, text, _ = given
    pooled = normal(given[2].shape)
    added = {"time_ids": time_ids, "text_embeds": pooled}
    mine = forward_sdxl_sampling(pipe, *given, 10, added)
    assert_close(mine, reference(unet, latent, text, pooled, 10, time_ids))


def test_a_loop_of_ones_own_makes_the_pipelines_latents(pipe):
    """The documented loop: prompt, DDIM steps over the denoiser, latents."""
    prompt = pipe.encode_prompt("a red heart")
    size = {"height": H * pipe.bundle.latents.factor, "width": W * pipe.bundle.latents.factor}
    x = normal((1, 4, H, W)).astype(np.float32)
    words = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent", **size}
    theirs = pipe("a red heart", latents=x, sampler="ddim", **words).latents
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps:
        predicted = forward_sdxl_sampling(pipe, x, prompt.embeds, prompt.pooled, t)
        x = scheduler.step(predicted, t, x, eta=0.0)
    assert_close(x, theirs)


BAD = [
    ({"pipe": "engines/sdxl"}, UsageError, "^pipe: got 'engines/sdxl'.*eri_runtime.load"),
    ({"latent": np.zeros((4, H, W))}, SizeError, r"^latent: got \(4, 16, 24\)"),
    ({"latent": np.zeros((2, 16, H, W))}, SizeError, "sample: got 16, expected 4"),
    ({"latent": np.zeros((3, 4, H, W))}, SizeError, r"^text_embeddings: got .* with B 3"),
    ({"latent": np.zeros((0, 4, H, W))}, SizeError, "^text_embeddings"),
    ({"latent": "noise"}, UsageError, "^latent: got an array of"),
    ({"latent": None}, UsageError, "^latent"),
    ({"latent": [[1.0], [1.0, 2.0]]}, UsageError, "^latent"),
    ({"latent": np.full((2, 4, H, W), np.nan)}, NonFiniteError, "^latent"),
    ({"latent": np.full((2, 4, H, W), 1e300)}, NonFiniteError, "^latent"),
    ({"text_embeddings": np.zeros((2, 16, 7))}, SizeError, "encoder_hidden_states: got 7"),
    ({"pooled_embeddings": np.zeros((1, 32))}, SizeError, "^pooled_embeddings"),
    ({"pooled_embeddings": np.zeros((2, 7))}, SizeError, "text_embeds: got 7"),
    ({"timestep": 1000}, UsageError, "^timestep: got 1000, expected 0 to below 1000"),
    ({"timestep": -0.5}, UsageError, "^timestep"),
    ({"timestep": float("nan")}, UsageError, "^timestep"),
    ({"timestep": "1"}, UsageError, "^timestep"),
    ({"added_cond_kwargs": {"time_id": 1}}, UnknownNameError, "'time_id', expected one of"),
    ({"added_cond_kwargs": {1: 1}}, UnknownNameError, "^added_cond_kwargs: got 1"),
    ({"added_cond_kwargs": [1]}, UsageError, r"^added_cond_kwargs: got \[1\]"),
    ({"added_cond_kwargs": {"time_ids": np.zeros((2, 5))}}, SizeError, "time_ids: got 5"),
    ({"added_cond_kwargs": {"time_ids": np.zeros(6)}}, SizeError, r"'time_ids'.*got \(6,\)"),
    ({"added_cond_kwargs": {"time_ids": None}}, UsageError, r"^added_cond_kwargs\['time_ids'\]"),
]


@pytest.mark.parametrize(("changed", "error", "match"), BAD)
def test_a_bad_argument_is_refused(pipe, changed, error, match):
    latent, text, pooled = arrays(pipe)
    words = {
        "pipe": pipe,
        "latent": latent,
        "text_embeddings": text,
        "pooled_embeddings": pooled,
        "timestep": 10,
        **changed,
    }
    with pytest.raises(error, match=match) as caught:
        forward_sdxl_sampling(**words)
    assert isinstance(caught.value, EriError)


def test_another_family_is_refused(pipe):
    flux = replace(pipe.bundle, family="flux")
    with Pipeline(flux, pytest.fail) as other, pytest.raises(UsageError, match="the flux family"):
        forward_sdxl_sampling(other, *arrays(pipe), 0)
