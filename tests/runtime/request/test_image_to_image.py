"""Image to image and inpainting give diffusers' pictures: same checkpoint, image, mask and seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxPipeline,
    HeunDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image

import eri_runtime as eri
from tests.support.diffusers_pipelines import (
    CALLS,
    PIXEL_TOLERANCE,
    PROMPTS,
    assert_same_latents,
    generators,
    load,
)

EDITS = {
    "sdxl": (StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline),
    "sd35": (StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline),
    "flux": (FluxImg2ImgPipeline, FluxInpaintPipeline),
}
HEIGHT, WIDTH = 48, 80
SEEDS = [7, 2]
# SDXL keeps int(steps·strength) of them, which may be none; a flow keeps one at least
NOTHING_LEFT = {("sdxl", 1, 0.3), ("sdxl", 1, 0.6), ("sdxl", 3, 0.3)}
RUNS = [
    (family, steps, strength)
    for family in EDITS
    for steps in (1, 3, 7)
    for strength in (0.3, 0.6, 1.0)
    if (family, steps, strength) not in NOTHING_LEFT
]


@dataclass(frozen=True)
class Pair:
    """Our pipeline and diffusers' two over one tiny checkpoint."""

    family: str
    ours: eri.Pipeline
    whole: Any
    inpaint: Any


@pytest.fixture(scope="module")
def pairs(request):
    """A family -> its `Pair`; the pipelines of a family share their networks."""
    made = {}

    def pair(family):
        if family not in made:
            text_to_image, bundle = load(request, family)
            kinds = [kind(**text_to_image.components) for kind in EDITS[family]]
            for each in kinds:
                each.set_progress_bar_config(disable=True)
            made[family] = Pair(family, eri.load(bundle), *kinds)
        return made[family]

    yield pair
    for each in made.values():
        each.ours.close()


@pytest.fixture(scope="module", params=EDITS)
def pair(request, pairs):
    return pairs(request.param)


def picture(seed, height=HEIGHT, width=WIDTH):
    """A picture of soft coloured blots with a grain."""
    rng = np.random.default_rng(seed)
    blots = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    soft = np.asarray(blots.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int64)
    return Image.fromarray(np.clip(soft + rng.integers(-9, 10, soft.shape), 0, 255).astype("uint8"))


PICTURES = [picture(0), picture(1)]


def mask(*, around=0, inside=255, hole=0, height=HEIGHT, width=WIDTH):
    """A mask with a hole; their edges are on odd pixels, and latents have 2 or 4 of them."""
    values = np.full((height, width), around, np.uint8)
    values[11:37, 9:51] = inside
    values[19:27, 21:31] = hole
    return Image.fromarray(values)


@torch.no_grad()
def decoded(pair, latents):
    """Images (B, H, W, 3) in [0, 1] of final latents, by diffusers' VAE.

    diffusers' inpainting with SD3 forgets the VAE's shift here, and only here.
    """
    vae, factor = pair.whole.vae, pair.whole.vae_scale_factor
    if pair.family == "flux":
        latents = FluxPipeline._unpack_latents(latents, HEIGHT, WIDTH, factor)
    z = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
    return pair.whole.image_processor.postprocess(vae.decode(z).sample, output_type="np")


def diffusers_call(pair, prompts=PROMPTS, *, image, seeds=SEEDS, mask_image=None, **words):
    """What one of diffusers' pipelines gives; every image has its own generator."""
    words = {"prompt": prompts, "image": image, **CALLS[pair.family][1], **words}
    pipe = pair.whole if mask_image is None else pair.inpaint
    if mask_image is not None:
        words["mask_image"] = mask_image
    if (pair.family, mask_image) != ("sdxl", None):  # SDXL's takes its size from the image
        words |= {"height": HEIGHT, "width": WIDTH}
    return pipe(**words, generator=generators(seeds)).images


def diffusers_gives(pair, *prompts, **words):
    """Final latents, and images (B, H, W, 3) in [0, 1]."""
    latents = diffusers_call(pair, *prompts, output_type="latent", **words)
    return latents.numpy(), decoded(pair, latents)


def we_give(pair, prompts=PROMPTS, *, seeds=SEEDS, **words):
    """The same of ours."""
    words = {"height": HEIGHT, "width": WIDTH, **CALLS[pair.family][1], **words}
    result = pair.ours(prompts, seed=seeds, output_type="np", **words)
    return result.latents, result.images


def assert_same(ours, theirs):
    assert_same_latents(ours[0], theirs[0])
    assert np.ptp(theirs[1]) > 0.1, "the reference must be more than one colour"
    assert np.abs(ours[1] - theirs[1]).max() <= PIXEL_TOLERANCE


@pytest.mark.parametrize("mask_image", [None, mask()], ids=["image", "mask"])
def test_the_images_compared_with_are_diffusers_pipelines(pair, mask_image):
    words = {"image": PICTURES, "mask_image": mask_image, "strength": 0.6}
    words |= {"num_inference_steps": 3}
    latents, images = diffusers_gives(pair, **words)
    theirs = diffusers_call(pair, output_type="np", **words)
    if pair.family == "sd35" and mask_image is not None:
        shift = pair.whole.vae.config.shift_factor * pair.whole.vae.config.scaling_factor
        images = decoded(pair, torch.from_numpy(latents - np.float32(shift)))
    np.testing.assert_allclose(images, theirs, atol=1e-5)


@pytest.mark.parametrize(("family", "steps", "strength"), RUNS)
def test_an_image_is_begun_from_as_in_diffusers(pairs, family, steps, strength):
    words = {"image": PICTURES, "strength": strength, "num_inference_steps": steps}
    assert_same(we_give(pairs(family), **words), diffusers_gives(pairs(family), **words))


@pytest.mark.parametrize(("family", "steps", "strength"), RUNS)
def test_a_mask_is_painted_in_as_in_diffusers(pairs, family, steps, strength):
    words = {"image": PICTURES, "strength": strength, "num_inference_steps": steps}
    theirs = diffusers_gives(pairs(family), mask_image=mask(), **words)
    assert_same(we_give(pairs(family), mask=mask(), **words), theirs)


SCHEDULERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
}
LEADING_5 = [801, 601, 401, 201, 1]  # as every other scheduler has five steps


@pytest.fixture
def scheduled(pairs):
    """Give SDXL another scheduler for one test."""
    pair = pairs("sdxl")
    usual = pair.whole.scheduler

    def schedule(name):
        kind, options = SCHEDULERS[name]
        pair.whole.scheduler = kind.from_config(usual.config, **options)
        pair.inpaint.scheduler = kind.from_config(usual.config, **options)
        return pair

    yield schedule
    pair.whole.scheduler = pair.inpaint.scheduler = usual


@pytest.mark.parametrize("mask_image", [None, mask()], ids=["image", "mask"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize(
    ("sampler", "eta"),
    [("ddim", 1.0), ("ddim", 0.0), ("euler_a", None), ("heun", None), ("dpmpp_2m", None)],
)
def test_every_kind_of_sampler_begins_there(scheduled, sampler, eta, strength, mask_image):
    """Also those that draw noise, after the draws for the posterior and the first latents."""
    pair = scheduled(sampler)
    words = {"image": PICTURES, "strength": strength, "num_inference_steps": 5}
    words |= {} if eta is None else {"eta": eta}
    # diffusers' DPM-Solver spaces `leading` by a number of its own
    levels = {"timesteps": LEADING_5} if sampler == "dpmpp_2m" else {}
    theirs = diffusers_gives(pair, mask_image=mask_image, **words, **levels)
    given = {} if mask_image is None else {"mask": mask_image}
    assert_same(we_give(pair, sampler=sampler, **given, **words), theirs)


@pytest.mark.parametrize("with_mask", [False, True])
def test_an_image_of_another_size_is_resized_as_in_diffusers(pair, with_mask):
    """Lanczos; SDXL's image to image alone leaves that to the caller."""
    large = [picture(seed, 101, 63) for seed in (0, 1)]
    resized = large
    if pair.family == "sdxl" and not with_mask:
        resized = [each.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS) for each in large]
    large_mask = mask(height=101, width=63) if with_mask else None
    words = {"strength": 0.6, "num_inference_steps": 3}
    theirs = diffusers_gives(pair, image=resized, mask_image=large_mask, **words)
    given = {"mask": large_mask} if with_mask else {}
    assert_same(we_give(pair, image=large, **given, **words), theirs)


def test_the_size_of_the_image_is_the_default(pair):
    words = {"image": PICTURES, "strength": 0.6, "num_inference_steps": 3}
    asked = we_give(pair, **words)[0]
    np.testing.assert_array_equal(we_give(pair, height=None, width=None, **words)[0], asked)


def test_one_image_is_for_every_prompt_and_every_image_of_it(pair):
    words = {"strength": 0.6, "num_inference_steps": 3}
    each = we_give(pair, image=[PICTURES[0]] * 2, **words)[0]
    np.testing.assert_array_equal(we_give(pair, image=PICTURES[0], **words)[0], each)
    theirs = diffusers_gives(pair, [PROMPTS[0]] * 2, image=[PICTURES[0]] * 2, **words)
    twice = {"image": PICTURES[0], "num_images_per_prompt": 2, **words}
    assert_same(we_give(pair, PROMPTS[0], **twice), theirs)


def test_arrays_are_as_good_as_pictures(pair):
    words = {"seeds": [3], "strength": 0.6, "num_inference_steps": 3}
    pixels, marked = np.asarray(PICTURES[0]), np.asarray(mask())
    from_pil = we_give(pair, PROMPTS[0], image=PICTURES[0], mask=mask(), **words)[0]
    floats = (pixels.astype(np.float32) / np.float32(255), marked.astype(np.float32) / 255)
    for image, each in [(pixels, marked), floats, (pixels[None], marked > 0)]:
        given = we_give(pair, PROMPTS[0], image=image, mask=each, **words)[0]
        np.testing.assert_array_equal(given, from_pil)


def test_a_mask_is_black_or_white(pair):
    """Half and more is white, as diffusers has it: 128 of 255 and up."""
    words = {"image": PICTURES, "strength": 0.6, "num_inference_steps": 3}
    grey = mask(around=127, inside=128, hole=0)
    theirs = diffusers_gives(pair, mask_image=grey, **words)
    assert_same(we_give(pair, mask=grey, **words), theirs)
    np.testing.assert_array_equal(
        we_give(pair, mask=grey, **words)[0], we_give(pair, mask=mask(), **words)[0]
    )


def test_a_mask_of_white_is_image_to_image(pair):
    words = {"image": PICTURES, "strength": 0.6, "num_inference_steps": 3}
    white = we_give(pair, mask=mask(around=255, hole=255), **words)
    without = we_give(pair, **words)
    np.testing.assert_allclose(white[0], without[0], rtol=1e-5, atol=1e-5)
    assert np.abs(white[0] - we_give(pair, mask=mask(), **words)[0]).max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_mask_of_black_gives_the_vaes_reconstruction(pair, strength):
    vae, encoded = pair.whole.vae, []
    for image, generator in zip(PICTURES, generators(SEEDS), strict=True):
        pixels = pair.whole.image_processor.preprocess(image)
        encoded.append(vae.encode(pixels).latent_dist.sample(generator))
    latents = (torch.cat(encoded) - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    if pair.family == "flux":
        latents = FluxPipeline._pack_latents(latents, *latents.shape)
    words = {"image": PICTURES, "strength": strength, "num_inference_steps": 3}
    ours = we_give(pair, mask=mask(inside=0), **words)
    assert_same(ours, (latents.numpy(), decoded(pair, latents)))
