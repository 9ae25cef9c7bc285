"""End to end against diffusers' own pipelines: same checkpoint, same latents, same words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
)

import eri_runtime as eri

PROMPTS = ["a red heart", "two black cats and one white dog", ""]
NEGATIVE = "blurry, low quality"
STEPS = 4
# float32 on both sides, but other kernels: rounding differs, and four steps of CFG amplify it
LATENT_TOLERANCE = 1e-4
PIXEL_TOLERANCE = 1 / 255

PIPELINES = {
    "sdxl": StableDiffusionXLPipeline,
    "sdxl_v": StableDiffusionXLPipeline,
    "sd35": StableDiffusion3Pipeline,
    "flux": FluxPipeline,
    "flux_schnell": FluxPipeline,
}
FAMILIES = list(PIPELINES)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """Our pipeline and diffusers' over one tiny checkpoint."""
    checkpoint = request.getfixturevalue(f"{request.param}_checkpoint")
    theirs = PIPELINES[request.param].from_pretrained(checkpoint)
    theirs.set_progress_bar_config(disable=True)
    with eri.load(request.getfixturevalue(f"{request.param}_bundle")) as ours:
        yield ours, theirs


def noise(pipe, batch, height, width, seed=0):
    """Unit noise (B, C, h, w)."""
    spec = pipe.bundle.latents
    shape = (batch, spec.channels, height // spec.factor, width // spec.factor)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def call(pipe, theirs, prompt, *, height, width, per_prompt=1, **more):
    """The same call of both; gives our result, their final latents and their pixels."""
    batch = per_prompt * (len(prompt) if isinstance(prompt, list) else 1)
    x = noise(pipe, batch, height, width)
    words = {
        "prompt": prompt,
        "height": height,
        "width": width,
        "num_inference_steps": STEPS,
        "num_images_per_prompt": per_prompt,
        **more,
    }
    if pipe.bundle.family != "sdxl":
        words["max_sequence_length"] = 20
    latents = torch.from_numpy(x)
    if pipe.bundle.family == "flux":
        latents = FluxPipeline._pack_latents(latents, *x.shape)
    final = theirs(**words, latents=latents, output_type="latent").images
    pixels = theirs(**words, latents=latents, output_type="np").images
    result = pipe(**words, latents=x, output_type="np")
    return result, final.numpy(), pixels


def guidance(pipe):
    """CFG on, in each family's own words."""
    if pipe.bundle.family == "flux":
        return {"guidance_scale": 3.5, "true_cfg_scale": 2.5}
    return {"guidance_scale": 5.0}


def assert_same(result, final, pixels):
    assert result.latents.shape == final.shape
    error = np.abs(result.latents - final).max() / np.abs(final).max()
    assert error <= LATENT_TOLERANCE, f"latents differ by {error:.2e}"
    assert np.abs(result.images - pixels).max() <= PIXEL_TOLERANCE


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80)])
def test_images_are_diffusers_images(pair, batch, height, width):
    ours, theirs = pair
    result, final, pixels = call(
        ours,
        theirs,
        PROMPTS[:batch],
        negative_prompt=[NEGATIVE] * batch,
        height=height,
        width=width,
        **guidance(ours),
    )
    assert np.ptp(pixels) > 0.1, "the reference must be more than one colour"
    assert_same(result, final, pixels)


def test_sdxl_takes_every_multiple_of_its_vaes_factor(pair, monkeypatch):
    """Latents that cannot be halved. diffusers would refuse the pixels of a VAE of factor 2."""
    ours, theirs = pair
    monkeypatch.setattr(theirs, "check_inputs", lambda *_, **__: None)
    if ours.bundle.family != "sdxl":
        assert ours.bundle.latents.patch == 2
        return
    factor = ours.bundle.latents.factor
    sizes = {"height": 17 * factor, "width": 25 * factor}
    assert_same(*call(ours, theirs, "a red heart", **sizes, **guidance(ours)))


def test_several_images_a_prompt(pair):
    ours, theirs = pair
    result, final, pixels = call(
        ours,
        theirs,
        PROMPTS[:2],
        negative_prompt=["", NEGATIVE],
        height=32,
        width=32,
        per_prompt=2,
        **guidance(ours),
    )
    assert_same(result, final, pixels)


def test_without_guidance(pair):
    ours, theirs = pair
    result, final, pixels = call(
        ours, theirs, "a red heart", height=32, width=32, guidance_scale=1.0
    )
    assert_same(result, final, pixels)


def test_no_negative_prompt_is_the_familys_own_default(pair):
    """Zeros for SDXL, the empty prompt for SD3.5, no CFG for Flux."""
    ours, theirs = pair
    result, final, pixels = call(
        ours, theirs, "a red heart", height=32, width=32, guidance_scale=4.0
    )
    assert_same(result, final, pixels)


def test_one_step(pair):
    ours, theirs = pair
    result, final, pixels = call(
        ours, theirs, "", height=32, width=32, **(guidance(ours) | {"num_inference_steps": 1})
    )
    assert_same(result, final, pixels)


@pytest.mark.parametrize(
    "prompt", ["a cat and a dog, " * 20, "ein Herz ❤ für Zoë, 心", "  A  RED heart "]
)
def test_prompts_are_tokenised_as_diffusers_does(pair, prompt):
    ours, theirs = pair
    result, final, pixels = call(
        ours, theirs, prompt, height=32, width=32, negative_prompt=prompt[::-1], **guidance(ours)
    )
    assert_same(result, final, pixels)


def test_a_loop_of_ones_own(pair):
    """`request`, `denoise`, `finish` are what a call is made of."""
    ours, _ = pair
    words = {"height": 32, "width": 32, "num_inference_steps": 3, "seed": 0, "output_type": "np"}
    request = ours.request("a red heart", **words)
    steps = list(ours.denoise(request))
    assert [(step.index, step.total) for step in steps] == [(0, 3), (1, 3), (2, 3)]
    assert [step.sigma for step in steps] == sorted((s.sigma for s in steps), reverse=True)
    finished = ours.finish(request, steps[-1].x)
    np.testing.assert_array_equal(finished.images, ours("a red heart", **words).images)


def test_the_prompt_and_the_seed_change_the_image(pair):
    ours, _ = pair
    words = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "latent"}
    first = ours("a red heart", seed=0, **words).images
    np.testing.assert_array_equal(first, ours("a red heart", seed=0, **words).images)
    assert np.abs(first - ours("a red heart", seed=1, **words).images).max() > 0.1
    other = ours("an orange circle left of a purple square", seed=0, **words).images
    assert np.abs(first - other).max() > 1e-3


def test_an_image_does_not_depend_on_its_batch(pair):
    ours, _ = pair
    words = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "latent"}
    batch = ours(PROMPTS, seed=5, **words).images
    alone = ours(PROMPTS[1], seed=6, **words).images
    np.testing.assert_allclose(batch[1], alone[0], rtol=1e-4, atol=1e-4)


def test_embeddings_can_be_brought(pair):
    ours, _ = pair
    words = {"height": 32, "width": 32, "num_inference_steps": 2, "seed": 0}
    condition = ours.encode_prompt("a red heart")
    given = ours(
        prompt_embeds=condition.embeds,
        pooled_prompt_embeds=condition.pooled,
        output_type="latent",
        **words,
    )
    asked = ours("a red heart", output_type="latent", **words)
    np.testing.assert_array_equal(given.images, asked.images)


def test_ddim_is_diffusers_ddim(sdxl_checkpoint, sdxl_bundle):
    theirs = StableDiffusionXLPipeline.from_pretrained(sdxl_checkpoint)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = DDIMScheduler.from_config(
        theirs.scheduler.config, clip_sample=False, set_alpha_to_one=True
    )
    with eri.load(sdxl_bundle) as ours:
        x = noise(ours, 1, 32, 48)
        words = {"prompt": "a red heart", "height": 32, "width": 48, "guidance_scale": 5.0}
        words |= {"num_inference_steps": 7, "output_type": "latent"}
        final = theirs(**words, latents=torch.from_numpy(x)).images.numpy()
        mine = ours(**words, latents=x, sampler="ddim").images
    assert np.abs(mine - final).max() <= LATENT_TOLERANCE * np.abs(final).max()
