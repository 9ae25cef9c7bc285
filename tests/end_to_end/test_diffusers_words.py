"""Every word of diffusers' nine pipelines: the same picture here, or refused with its reason."""

from __future__ import annotations

import inspect

import diffusers
import numpy as np
import pytest
import torch

import eri_runtime as eri
from eri_runtime.errors import UsageError
from eri_runtime.request import POSITIONAL
from tests.support import diffusers_words as words
from tests.support.diffusers_pipelines import (
    LATENT_TOLERANCE,
    PIXEL_TOLERANCE,
    generators,
    load,
)

STEM = {"sdxl": "StableDiffusionXL", "sd35": "StableDiffusion3", "flux": "Flux"}
SUFFIX = {"text": "", "edit": "Img2Img", "paint": "Inpaint"}
RUNS = [
    (case, family, kind) for case in words.CASES for family in case.families for kind in case.kinds
]


def pipeline_class(family, kind):
    """One of diffusers' nine pipelines."""
    return getattr(diffusers, f"{STEM[family]}{SUFFIX[kind]}Pipeline")


def words_of(family, kind):
    """The words of one of diffusers' pipelines."""
    names = inspect.signature(pipeline_class(family, kind).__call__).parameters
    return [name for name in names if name not in ("self", "kwargs")]


@pytest.fixture(scope="module")
def pairs(request):
    """Family and kind -> our pipeline and diffusers', over one tiny checkpoint."""
    made, opened = {}, {}

    def pair(family, kind="text"):
        if family not in opened:
            theirs, bundle = load(request, family)
            opened[family] = eri.load(bundle), theirs.components
        ours, components = opened[family]
        if (family, kind) not in made:
            made[family, kind] = pipeline_class(family, kind)(**components)
            made[family, kind].set_progress_bar_config(disable=True)
        return ours, made[family, kind]

    yield pair
    for ours, _ in opened.values():
        ours.close()


def plain(family, kind):
    """The words of the plain call, which cases change."""
    # SDXL's image to image takes the picture's size, the others the model's
    size = {} if (family, kind) == ("sdxl", "edit") else words.SIZE
    return {**words.BASE, **size, **words.KINDS[kind], **words.FAMILY[family]}


def calls(family, kind, case):
    """The words of our call and of diffusers', without noise.

    diffusers' SD3 forgets the VAE's shift when it paints, so its latents are compared.
    """
    more = words.CFG[family] if "negative_prompt" in case.both else {}
    output = "latent" if (family, kind) == ("sd35", "paint") else "np"
    both = {**plain(family, kind), "output_type": output, **more, **case.both}
    both = {name: value for name, value in both.items() if value is not None}
    return dict(both), both


def as_array(images):
    """Images as floats: of PIL, torch and NumPy."""
    if isinstance(images, list):
        return np.stack([np.asarray(each, np.float32) / 255 for each in images])
    return np.asarray(images, dtype=np.float32)


def assert_close(mine, theirs, *, latents=False):
    mine, theirs = map(as_array, (mine, theirs))
    assert mine.shape == theirs.shape
    limit = LATENT_TOLERANCE * np.abs(theirs).max() if latents else PIXEL_TOLERANCE
    assert np.abs(mine - theirs).max() <= limit


@pytest.fixture(scope="module")
def plain_latents(pairs):
    """Family and kind -> the latents of the plain call."""
    made = {}

    def latents(family, kind):
        if (family, kind) not in made:
            ours, _ = pairs(family, kind)
            words_ = {**plain(family, kind), "output_type": "latent"}
            made[family, kind] = ours(**words_, seed=words.SEED).latents
        return made[family, kind]

    return latents


@pytest.mark.parametrize(
    ("case", "family", "kind"), RUNS, ids=[f"{c.name}-{f}-{k}" for c, f, k in RUNS]
)
def test_a_word_gives_diffusers_picture(pairs, plain_latents, case, family, kind):
    ours, theirs = pairs(family, kind)
    mine, both = calls(family, kind, case)
    seeds = [words.SEED + i for i in range(case.images)]
    final = theirs(**both, generator=generators(seeds))[0]
    result = ours(**mine, seed=words.SEED)
    assert_close(result[0], final, latents=both["output_type"] == "latent")
    if case.changes:
        before = plain_latents(family, kind)
        other = result.latents.shape != before.shape
        assert other or np.abs(result.latents - before).max() > 1e-3


def made_of(family, kind):
    """Words of a call with CFG that gives latents."""
    return {**plain(family, kind), **words.CFG[family], "num_inference_steps": 2}


@pytest.mark.parametrize("family", words.ALL)
def test_a_generator_draws_for_all_images_and_is_left_advanced(pairs, family):
    """torch's own, a seed, and eri's of the same stream; the second call goes on in it."""
    ours, theirs = pairs(family)
    both = {**made_of(family, "text"), "num_images_per_prompt": 2, "output_type": "latent"}
    generator, own, noise = torch.Generator().manual_seed(3), *generators([3]), eri.TorchNormal(3)
    for seed in (3, None):
        final = theirs(**both, generator=generator)[0]
        result = ours(**both, generator=own)
        assert_close(result.latents, final, latents=True)
        assert_close(ours(**both, generator=noise).latents, final, latents=True)
        assert result.seeds == ()
        assert "Seed:" not in result.parameters[0]
        if seed is not None:
            assert_close(ours(**both, generator=seed).latents, final, latents=True)
    one = ours(**made_of(family, "text"), generator=[7])
    assert one.seeds == (7,)
    assert ", Seed: 7," in one.parameters[0]


@pytest.mark.parametrize("kind", words.KINDS)
@pytest.mark.parametrize("family", words.ALL)
def test_embeddings_latents_and_generators_of_ones_own(pairs, family, kind):
    """All of torch; the same arrays, and the same streams, in both libraries."""
    ours, theirs = pairs(family, kind)
    both = {**made_of(family, kind), "output_type": "latent", "prompt": None}
    pair = [ours.encode_prompt(text, 20) for text in ("a red heart", "blurry")]
    for prefix, condition in zip(("", "negative_"), pair, strict=True):
        both[f"{prefix}prompt_embeds"] = torch.from_numpy(condition.embeds)
        both[f"{prefix}pooled_prompt_embeds"] = torch.from_numpy(condition.pooled)
    final = theirs(**both, generator=generators([5]))[0]
    assert_close(ours(**both, generator=generators([5])).latents, final, latents=True)
    spec = ours.bundle.latents
    shape = (1, spec.channels, words.HEIGHT // spec.factor, words.WIDTH // spec.factor)
    latents = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    if family == "flux" and kind != "paint":
        latents = diffusers.FluxPipeline._pack_latents(latents, *latents.shape)
    both["latents"] = latents
    final = theirs(**both, generator=generators([5]))[0]
    assert_close(ours(**both, generator=generators([5])).latents, final, latents=True)


@pytest.mark.parametrize(
    ("family", "kind"), [("sdxl", "edit"), ("sdxl", "paint"), ("sd35", "edit"), ("flux", "edit")]
)
def test_latents_of_an_earlier_call_are_an_image(pairs, family, kind):
    ours, theirs = pairs(family, kind)
    both = {**made_of(family, kind), "output_type": "latent"}
    spec = ours.bundle.latents
    shape = (1, spec.channels, words.HEIGHT // spec.factor, words.WIDTH // spec.factor)
    image = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    final = theirs(**{**both, "image": torch.from_numpy(image)}, generator=generators([5]))[0]
    assert_close(ours(**{**both, "image": image}, seed=5).latents, final, latents=True)


def test_base_and_refining_call_make_one_picture(pairs):
    """denoising_end and then denoising_start, on the same model: each library's own latents."""
    ours, theirs = pairs("sdxl", "text")
    _, refines = pairs("sdxl", "edit")
    both = {**plain("sdxl", "text"), "num_inference_steps": 4}
    first = {**both, "denoising_end": 0.5, "output_type": "latent"}
    rest = {**plain("sdxl", "edit"), "num_inference_steps": 4, "denoising_start": 0.5}
    rest |= {"strength": None, "output_type": "np"}
    mine = ours(**{**rest, "image": ours(**first, seed=words.SEED).images}, seed=words.SEED)
    del rest["strength"]
    latents = theirs(**first, generator=generators([words.SEED]))[0]
    final = refines(**{**rest, "image": latents}, generator=generators([words.SEED]))[0]
    assert_close(mine.images, final)
    whole = ours(**both, output_type="np", seed=words.SEED)
    assert_close(mine.images, whole.images)


@pytest.mark.parametrize("mu", [0.3, 1.15])
def test_mu_is_the_shift_of_a_schedule_that_depends_on_the_size(pairs, mu):
    ours, _ = pairs("flux")
    request = ours.request("a", mu=mu, num_inference_steps=4, height=32, width=48)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 4, 4), mu=mu)
    np.testing.assert_allclose(ours.schedule(request).sigma, scheduler.sigmas, atol=1e-6)
    with pytest.raises(UsageError, match=r"^mu: got .*expected a call without it"):
        pairs("sd35")[0].request("a", mu=mu)


@pytest.mark.parametrize("family", words.ALL)
@pytest.mark.parametrize("name", words.REFUSED)
def test_a_word_without_meaning_here_is_refused_with_its_reason(pairs, family, name):
    ours, _ = pairs(family)
    with pytest.raises(UsageError, match=rf"(?s)^{name}: got .*expected a call without") as refused:
        ours.request("a", **{name: words.REFUSED[name]})
    assert len(str(refused.value)) < 300
    assert ours.request("a", **{name: None}) is not None


@pytest.mark.parametrize("family", words.ALL)
def test_positions_are_diffusers(family):
    names = words_of(family, "text")
    assert ["prompt", *POSITIONAL[family]] == names


def test_positional_arguments_are_those_that_are_named(pairs):
    for family in words.ALL:
        ours, _ = pairs(family)
        values = {
            "prompt_2": "b",
            "prompt_3": "c",
            "negative_prompt": "d",
            "negative_prompt_2": "e",
        }
        values |= {"negative_prompt_2": "e", "true_cfg_scale": 2.0, "height": 32, "width": 48}
        names = [name for name in POSITIONAL[family] if name in values]
        names = names[: 1 + names.index("width")]
        request = ours.request("a", *(values[name] for name in names), seed=0)
        named = ours.request("a", **{name: values[name] for name in names}, seed=0)
        assert (request.prompts, request.width) == (named.prompts, 48)
        assert request.negative_prompts == named.negative_prompts
        with pytest.raises(UsageError, match=r"^prompt_2: got it twice"):
            ours.request("a", "b", prompt_2="b")
        with pytest.raises(UsageError, match=r"^positional arguments: got 99 of them"):
            ours.request("a", *[None] * 98)


PROVEN = {(word, f, kind) for case, f, kind in RUNS for word in case.words}


@pytest.mark.parametrize("kind", words.KINDS)
@pytest.mark.parametrize("family", words.ALL)
def test_every_word_of_diffusers_is_proven_equal_or_refused(family, kind):
    """Fails when diffusers adds a word."""
    rest = {*words.REFUSED, *words.OWN_TESTS}
    crops = {("padding_mask_crop", "sd35", "paint")}  # in test_kept_pixels
    missing = [
        word
        for word in words_of(family, kind)
        if word not in rest and (word, family, kind) not in PROVEN | crops
    ]
    assert not missing
