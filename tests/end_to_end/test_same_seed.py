"""A seed gives diffusers' picture: `seed=` here, there a CPU generator of that seed an image."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
)

import eri_runtime as eri
from eri_runtime.errors import UsageError
from tests.support.diffusers_pipelines import (
    CALLS,
    PIXEL_TOLERANCE,
    PROMPTS,
    assert_same_latents,
    generators,
    load,
)


@pytest.mark.parametrize("seeds", [[0], [2**40 + 3], [7, 2]])
@pytest.mark.parametrize("family", CALLS)
def test_a_seed_is_diffusers_picture(request, family, seeds):
    theirs, bundle = load(request, family)
    words = {"prompt": PROMPTS[: len(seeds)], "height": 48, "width": 80, "num_inference_steps": 3}
    words |= CALLS[family][1]
    final = theirs(**words, generator=generators(seeds), output_type="latent").images.numpy()
    pixels = theirs(**words, generator=generators(seeds), output_type="np").images
    with eri.load(bundle) as ours:
        result = ours(**words, seed=seeds[0] if len(seeds) == 1 else seeds, output_type="np")
    assert_same_latents(result.latents, final)
    assert np.abs(result.images - pixels).max() <= PIXEL_TOLERANCE


@pytest.mark.parametrize("brought", ["nothing", "latents"])
def test_noise_in_the_loop_goes_on_in_each_images_stream(request, brought):
    """DDIM with eta 1 draws in every step; with latents brought, it draws first what they would."""
    theirs, bundle = load(request, "sdxl")
    theirs.scheduler = DDIMScheduler.from_config(
        theirs.scheduler.config, clip_sample=False, set_alpha_to_one=True
    )
    seeds = [11, 3]
    words = {"prompt": PROMPTS, "height": 32, "width": 48, "guidance_scale": 5.0}
    words |= {"num_inference_steps": 5, "eta": 1.0, "output_type": "latent"}
    with eri.load(bundle) as ours:
        spec = ours.bundle.latents
        shape = (2, spec.channels, 32 // spec.factor, 48 // spec.factor)
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        given = {} if brought == "nothing" else {"latents": torch.from_numpy(x)}
        final = theirs(**words, **given, generator=generators(seeds)).images.numpy()
        given = {} if brought == "nothing" else {"latents": x}
        mine = ours(**words, **given, seed=seeds, sampler="ddim").images
        other = ours(**words, **given, seed=[11, 4], sampler="ddim").images
    assert_same_latents(mine, final)
    np.testing.assert_allclose(other[0], mine[0], rtol=1e-4, atol=1e-4)
    assert np.abs(other[1] - mine[1]).max() > 0.1


# our sampler, diffusers' scheduler, its settings, and whether its own levels are passed: what it
# calls `leading` is its own for the multistep ones
SAMPLERS = {
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}, False),
    "heun": (diffusers.HeunDiscreteScheduler, {}, False),
    "dpm2": (diffusers.KDPM2DiscreteScheduler, {}, False),
    "dpm2_a": (diffusers.KDPM2AncestralDiscreteScheduler, {}, False),
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False}, False),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}, True),
    "dpmpp_2m_sde": (
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++"},
        True,
    ),
    "unipc": (diffusers.UniPCMultistepScheduler, {"final_sigmas_type": "zero"}, True),
    "lcm": (diffusers.LCMScheduler, {}, False),
    "euler karras": (diffusers.EulerDiscreteScheduler, {"use_karras_sigmas": True}, False),
}


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # diffusers' KDPM2
@pytest.mark.parametrize("case", SAMPLERS)
def test_a_seed_is_diffusers_picture_with_any_sampler(request, case):
    """Ancestral ones and SDEs too: both sides draw their noise from the same streams."""
    theirs, bundle = load(request, "sdxl")
    cls, settings, own_levels = SAMPLERS[case]
    theirs.scheduler = cls.from_config(theirs.scheduler.config, **settings)
    sampler, _, sigmas = case.partition(" ")
    words = {"prompt": PROMPTS, "height": 32, "width": 48, "guidance_scale": 5.0}
    words |= {"num_inference_steps": 4}
    final = theirs(**words, generator=generators([7, 2]), output_type="latent").images.numpy()
    pixels = theirs(**words, generator=generators([7, 2]), output_type="np").images
    levels = theirs.scheduler.sigmas[:-1].tolist() if own_levels else sigmas or None
    with eri.load(bundle) as ours:
        result = ours(**words, seed=[7, 2], sampler=sampler, sigmas=levels, output_type="np")
    assert_same_latents(result.latents, final)
    assert np.abs(result.images - pixels).max() <= PIXEL_TOLERANCE


def test_a_seed_is_diffusers_picture_with_heun_on_a_flow(request):
    theirs, bundle = load(request, "sd35")
    config = theirs.scheduler.config
    theirs.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=config.shift)
    words = {"prompt": PROMPTS, "height": 32, "width": 48, "guidance_scale": 5.0}
    words |= {"num_inference_steps": 4, "max_sequence_length": 20}
    final = theirs(**words, generator=generators([7, 2]), output_type="latent").images.numpy()
    with eri.load(bundle) as ours:
        mine = ours(**words, seed=[7, 2], sampler="flow_heun", output_type="latent").images
    assert_same_latents(mine, final)


def test_a_noise_source_can_be_brought(sdxl_bundle):
    words = {"prompt": "a red heart", "height": 32, "width": 32, "num_inference_steps": 3}
    words |= {"sampler": "ddim", "eta": 1.0, "output_type": "latent"}
    with eri.load(sdxl_bundle) as ours:
        seeded = ours(**words, seed=4).images
        np.testing.assert_array_equal(ours(**words, noise=eri.TorchNoise([4])).images, seeded)
        philox = ours(**words, noise=eri.PhiloxNoise([4])).images
        assert np.abs(philox - seeded).max() > 0.1
        with pytest.raises(UsageError, match="noise"):
            ours(**words, noise=eri.PhiloxNoise([4, 5]))
        with pytest.raises(UsageError, match="noise"):
            ours(**words, noise=np.zeros((1, 4, 8, 8)))
