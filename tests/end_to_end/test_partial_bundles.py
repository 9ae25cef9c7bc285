"""Bundles of checkpoints that lack a text encoder, all of them, or the VAE."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline

import eri_runtime as eri
from eri_export import export, open_checkpoint
from eri_export.checkpoints import manifest_facts
from eri_export.checkpoints.tokenizers import read_tokenizers
from eri_export.choices.precision import Policy
from eri_export.graphs.recipes import recipes_for
from eri_runtime.bundle import manifest
from eri_runtime.commands.main import main
from eri_runtime.errors import CheckpointError, ManifestError, SizeError, UsageError

PIPELINES = {
    "sdxl": StableDiffusionXLPipeline,
    "sd35": StableDiffusion3Pipeline,
    "flux": FluxPipeline,
}
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOLERANCE = 1e-4  # as in test_pipelines.py
STEPS = 3


def without(checkpoint, root, absent):
    """A copy of a diffusers folder that was saved without these components."""
    shutil.copytree(checkpoint, root)
    index = json.loads((root / "model_index.json").read_text())
    names = [*absent, *(name.replace("text_encoder", "tokenizer") for name in absent)]
    for name in set(names) & set(index):
        shutil.rmtree(root / name)
        index[name] = [None, None]
    (root / "model_index.json").write_text(json.dumps(index))
    return root


@pytest.fixture(scope="session")
def partial(request, tmp_path_factory):
    """What exports a family's tiny checkpoint without some components, each but once."""
    made = {}

    def make(family, *absent):
        if (family, absent) not in made:
            folder = tmp_path_factory.mktemp("-".join([family, "without", *absent]))
            root = folder / "checkpoint"
            without(request.getfixturevalue(f"{family}_checkpoint"), root, absent)
            made[family, absent] = root, export(root, folder / "bundle").root
        return made[family, absent]

    return make


def diffusers_pipeline(family, root):
    """diffusers' pipeline of a folder, which has to be told what the folder lacks."""
    index = json.loads((root / "model_index.json").read_text())
    absent = {name: None for name, entry in index.items() if entry == [None, None]}
    pipeline = PIPELINES[family].from_pretrained(root, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(pipe, batch, height, width):
    spec = pipe.bundle.latents
    shape = (batch, spec.channels, height // spec.factor, width // spec.factor)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def embeddings(pipe, batch, tokens=20):
    """Embeddings in the shapes of the denoiser's inputs, from a fixed seed."""
    rng = np.random.default_rng(1)
    widths = {each.name: each.shape[-1] for each in pipe.bundle.components["denoiser"].inputs}
    pooled = "text_embeds" if pipe.bundle.family == "sdxl" else "pooled_projections"
    return {
        "prompt_embeds": rng.standard_normal(
            (batch, tokens, widths["encoder_hidden_states"]), dtype=np.float32
        ),
        "pooled_prompt_embeds": rng.standard_normal((batch, widths[pooled]), dtype=np.float32),
    }


def negative(embeds):
    return {f"negative_{name}": -value for name, value in embeds.items()}


def tensors(words):
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in words.items()
    }


def assert_same_latents(pipe, theirs, height, width, batch=1, **words):
    """The same call of both ends in the same latents."""
    x = noise(pipe, batch, height, width)
    given = torch.from_numpy(x)
    if pipe.bundle.family == "flux":
        given = FluxPipeline._pack_latents(given, *x.shape)
    words |= {"height": height, "width": width, "num_inference_steps": STEPS}
    final = theirs(**tensors(words), latents=given, output_type="latent").images.numpy()
    mine = pipe(**words, latents=x, output_type="latent").images
    assert mine.shape == final.shape
    assert np.isfinite(final).all()
    assert np.abs(mine - final).max() <= TOLERANCE * np.abs(final).max()


# SD3.5 without T5


@pytest.fixture(scope="module")
def without_t5(partial):
    """Our pipeline and diffusers' with `text_encoder_3=None`."""
    root, bundle = partial("sd35", "text_encoder_3")
    with eri.load(bundle) as pipe:
        yield pipe, diffusers_pipeline("sd35", root)


@pytest.mark.parametrize("length", [1, 20, None])
def test_zeros_stand_for_t5s_tokens(without_t5, length):
    ours, theirs = without_t5
    assert theirs.text_encoder_3 is None
    prompts = ["a red heart", "two black cats and one white dog"]
    words = {} if length is None else {"max_sequence_length": length}
    with torch.no_grad():
        expected, _, pooled, _ = theirs.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, **words
        )
    condition = ours.encode_prompt(prompts, length)
    assert condition.embeds.shape == expected.shape == (2, 16 + (length or 256), 64)
    np.testing.assert_allclose(condition.embeds, expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(condition.embeds[:, 16:], 0)
    np.testing.assert_allclose(condition.pooled, pooled.numpy(), atol=1e-5)


@pytest.mark.parametrize("words", [{}, {"guidance_scale": 1.0}, {"max_sequence_length": 20}])
def test_trajectories_without_t5(without_t5, words):
    ours, theirs = without_t5
    assert_same_latents(ours, theirs, 48, 64, prompt="a red heart", **words)


def test_a_batch_without_t5(without_t5):
    ours, theirs = without_t5
    prompts = ["a red heart", "", "two black cats and one white dog"]
    negatives = ["blurry", "", "low quality"]
    words = {"negative_prompt": negatives, "num_images_per_prompt": 2, "max_sequence_length": 20}
    assert_same_latents(ours, theirs, 32, 32, batch=6, prompt=prompts, **words)


@pytest.mark.parametrize("length", [0, 513])
def test_a_length_t5_could_not_have(without_t5, length):
    with pytest.raises(SizeError, match=f"max_sequence_length: got {length}, expected 1 to 512"):
        without_t5[0]("a red heart", max_sequence_length=length)


def test_images_without_t5(without_t5):
    result = without_t5[0]("a red heart", height=32, width=32, num_inference_steps=1, seed=0)
    assert result.images[0].size == (32, 32)


# no text encoders


@pytest.fixture(scope="module", params=PIPELINES)
def textless(request, partial):
    """Our pipeline and diffusers' without any text encoder."""
    root, bundle = partial(request.param, *ENCODERS)
    with eri.load(bundle) as pipe:
        yield pipe, diffusers_pipeline(request.param, root)


def test_embeddings_do_without_text_encoders(textless):
    ours, theirs = textless
    words = embeddings(ours, 2)
    words |= negative(words)
    if ours.bundle.family == "flux":
        words["true_cfg_scale"] = 2.5
    assert_same_latents(ours, theirs, 32, 48, batch=2, guidance_scale=4.0, **words)


def test_sdxls_empty_negative_is_zeros_of_given_embeddings(partial):
    root, bundle = partial("sdxl", *ENCODERS)
    with eri.load(bundle) as ours:
        assert ours.bundle.zero_empty_negative
        theirs = diffusers_pipeline("sdxl", root)
        assert_same_latents(ours, theirs, 32, 32, guidance_scale=4.0, **embeddings(ours, 1))


def test_a_prompt_needs_its_encoders(textless):
    ours, _ = textless
    named = r"prompt: got a bundle without text_encoder and text_encoder_2"
    for call in (ours, ours.request, ours.encode_prompt):
        with pytest.raises(UsageError, match=rf"^{named}.*pass `prompt_embeds`.*--text-encoders"):
            call("a red heart")


def test_a_negative_prompt_needs_them_too_before_any_step(textless):
    ours, _ = textless
    words = {**embeddings(ours, 1), "guidance_scale": 4.0, "true_cfg_scale": 2.0}
    request = ours.request(negative_prompt="blurry", **words)
    with pytest.raises(UsageError, match=r"^negative_prompt: .*`negative_pooled_prompt_embeds`"):
        ours.denoise(request)  # not a step of it was asked for


def test_text_lengths_are_the_familys_own(textless):
    bundle = textless[0].bundle
    tokens = bundle.components["denoiser"].ranges["tokens"]
    usual, most = {"sdxl": (77, 4 * 77), "sd35": (77 + 256, 77 + 512), "flux": (512, 512)}[
        bundle.family
    ]
    assert (tokens.min, tokens.opt, tokens.max) == (1, usual, most)
    assert (
        bundle.defaults.max_sequence_length == {"sdxl": 77, "sd35": 256, "flux": 512}[bundle.family]
    )
    assert bundle.tokenizers == {}


# no VAE


@pytest.fixture(scope="module", params=PIPELINES)
def blind(request, partial):
    """Our pipeline and diffusers' of a denoiser alone."""
    root, bundle = partial(request.param, "vae", *ENCODERS)
    with eri.load(bundle) as pipe:
        yield pipe, diffusers_pipeline(request.param, root)


def test_latents_do_without_a_vae(blind):
    """Eight pixels to a latent, as the published VAEs have; diffusers assumes the same."""
    ours, theirs = blind
    assert set(ours.bundle.components) == {"denoiser"}
    assert ours.bundle.latents.factor == theirs.vae_scale_factor == 8
    words = embeddings(ours, 1)
    assert_same_latents(ours, theirs, 64, 96, guidance_scale=1.0, **words)


@pytest.mark.parametrize("output_type", [None, "pil", "np"])
def test_images_need_a_vae_before_any_step(blind, output_type):
    ours, _ = blind
    steps = []
    with pytest.raises(UsageError, match=r"output_type.*without vae_decoder.*latent.*--vae"):
        ours(**embeddings(ours, 1), output_type=output_type, on_step=steps.append)
    assert not steps


def test_sizes_and_counts_without_a_vae(blind, request):
    """The limits are those of a whole bundle of the same network."""
    ours, _ = blind
    words = {"output_type": "latent", "num_inference_steps": 1}
    unit = 8 * ours.bundle.latents.patch
    most = 2 * ours.bundle.defaults.height
    if ours.bundle.family == "sd35":
        most = min(most, 8 * 24 * 2)  # the end of its position table
    for size, limits in ((most + unit, f"{unit} to {most}"), (0, "a positive multiple")):
        with pytest.raises(SizeError, match=f"height: got {size}, expected {limits}"):
            ours.request(**embeddings(ours, 1), height=size, width=unit, **words)
    assert ours.request(**embeddings(ours, 8), height=most, width=unit, **words).batch == 8
    with pytest.raises(SizeError, match="images in one call: got 9, expected 1 to 8"):
        ours.request(**embeddings(ours, 9), **words)


def test_a_vae_without_text_encoders_still_draws(textless):
    ours, _ = textless
    words = {"height": 32, "width": 32, "num_inference_steps": 1, "guidance_scale": 1.0}
    result = ours(**embeddings(ours, 1), **words, output_type="np")
    assert result.images.shape == (1, 32, 32, 3)


# the manifest, the command line, and what cannot be exported


def test_absence_is_read_back_and_inspected(partial, capsys):
    _, bundle = partial("sd35", "text_encoder_3")
    assert "text_encoder_3" not in manifest.read(bundle).components
    assert main(["inspect", str(bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "no text_encoder_3: zeros stand for its part of a prompt" in lines
    assert not [line for line in lines if line.startswith(("no vae", "no text_encoder:"))]


def test_a_denoiser_alone_is_inspected(partial, capsys):
    _, bundle = partial("flux", "vae", *ENCODERS)
    assert main(["inspect", str(bundle)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no ")]
    named = [line.removeprefix("no ").partition(":")[0] for line in lines]
    assert named == ["vae_decoder", "vae_encoder", "text_encoder", "text_encoder_2"]


def test_generate_says_the_way_out(partial, capsys, tmp_path):
    _, bundle = partial("flux", *ENCODERS)
    assert main(["generate", str(bundle), "a red heart", "-o", str(tmp_path / "x.png")]) == 2
    assert "--text-encoders" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "name"), [("components", "denoiser"), ("tokenizers", "tokenizer_2")]
)
def test_a_manifest_without_what_is_never_absent(sd35_bundle, kind, name):
    data = json.loads((sd35_bundle / "manifest.json").read_text())
    del data[kind][name]
    with pytest.raises(ManifestError, match=rf"{kind}: .*expected {name} among them"):
        manifest.parse(data, sd35_bundle)


def test_half_of_the_clips_is_no_prompt(sd35_checkpoint, tmp_path):
    """Each family needs its first two encoders; the third alone may be absent."""
    opened = open_checkpoint(sd35_checkpoint)
    fewer = {name: each for name, each in opened.components.items() if name != "text_encoder_2"}
    checkpoint = replace(opened, components=fewer)
    tokenizers = {name: each.spec for name, each in read_tokenizers(checkpoint).items()}
    assert set(tokenizers) == {"tokenizer", "tokenizer_3"}
    latents = manifest_facts.latent_spec(checkpoint)
    defaults = manifest_facts.defaults(checkpoint, latents, tokenizers)
    recipes = recipes_for(checkpoint, Policy(), latents, defaults, tokenizers)
    names = [recipe.name for recipe in recipes]
    assert names == ["denoiser", "vae_decoder", "vae_encoder", "text_encoder", "text_encoder_3"]


def test_no_vae_and_no_config_of_one(flux_checkpoint):
    opened = open_checkpoint(flux_checkpoint)
    with pytest.raises(CheckpointError, match=r"no VAE.*--vae"):
        manifest_facts.latent_spec(replace(opened, configs={}))


def test_an_encoder_without_its_tokenizer(flux_checkpoint, tmp_path):
    opened = open_checkpoint(flux_checkpoint)
    with pytest.raises(CheckpointError, match="no tokenizer, expected one for text_encoder"):
        read_tokenizers(replace(opened, tokenizers={}))
