"""Shipped configs build the published networks; shipped tokenizers give the published ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import diffusers
import numpy as np
import pytest
import torch
import transformers

from eri_export.checkpoints import manifest_facts
from eri_export.checkpoints.checkpoint import DENOISERS, PARTS, Checkpoint, Component
from eri_export.checkpoints.shipped_configs import (
    TOKENIZERS,
    TYPICAL,
    VOCABULARIES,
    Model,
    configs,
    tokenizer,
)
from eri_export.checkpoints.tokenizers import load_tokenizer
from eri_runtime.bundle.spec import LatentSpec, TokenizerSpec
from eri_runtime.sampling.schedule import make_schedule

FAMILIES = {
    "sdxl-base": "sdxl",
    "sd3-medium": "sd35",
    "sd3.5-medium": "sd35",
    "sd3.5-large": "sd35",
    "flux-dev": "flux",
    "flux-schnell": "flux",
}
SHIPPED = [(model, part) for model, family in FAMILIES.items() for part in PARTS[family]]
# of the published weights
PARAMETERS = {
    ("sdxl-base", "unet"): 2_567_463_684,
    ("sdxl-base", "vae"): 83_653_863,
    ("sd3-medium", "transformer"): 2_028_328_000,
    ("sd3.5-medium", "transformer"): 2_243_171_520,
    ("sd3.5-large", "transformer"): 8_056_627_520,
    ("flux-dev", "transformer"): 11_901_408_320,
    ("flux-schnell", "transformer"): 11_891_178_560,
    "vae": 83_819_683,
    "CLIPTextModel": 123_060_480,
    "text_encoder": 123_650_304,  # with its projection
    "text_encoder_2": 694_659_840,
    "T5EncoderModel": 4_762_310_656,
}
REFERENCE = json.loads(
    (Path(__file__).parents[2] / "data" / "token_ids.json").read_text(encoding="utf-8")
)
STEPS = 20
LATENTS = {
    "sdxl": LatentSpec(channels=4, factor=8, scale=0.13025, shift=0.0, patch=1),
    "sd35": LatentSpec(channels=16, factor=8, scale=1.5305, shift=0.0609, patch=2),
    "flux": LatentSpec(channels=16, factor=8, scale=0.3611, shift=0.1159, patch=2),
}
# transformers reads a tokenizer's padding mark, here "!", in the text as well: "!" and "!!"
PADDING_IN_TEXT = {256: (0,), 748: (0, 0)}


def build(class_name, config):
    """The network, with shapes and no values."""
    with torch.device("meta"):
        if hasattr(diffusers, class_name):
            return getattr(diffusers, class_name).from_config(dict(config))
        kind = getattr(transformers, class_name)
        return kind(kind.config_class.from_dict(dict(config)))


def opened(model):
    """A checkpoint of the shipped configs, with no weights behind its denoiser."""
    family, shipped = FAMILIES[model], configs(model)
    name = DENOISERS[family]
    denoiser = Component(name, PARTS[family][name], Path(model), shipped[name], dict)
    return Checkpoint(
        root=Path(model),
        layout="shipped",
        family=family,
        index=shipped["model_index"],
        components={name: denoiser},
        configs=shipped,
        tokenizers={},
        scheduler=shipped["scheduler"],
    )


def test_every_model_has_every_part():
    assert set(FAMILIES) == set(get_args(Model))
    for model, family in FAMILIES.items():
        assert set(configs(model)) == {*PARTS[family], "scheduler", "model_index"}


@pytest.mark.parametrize(("model", "part"), SHIPPED)
def test_a_config_builds_the_published_network(model, part):
    class_name = PARTS[FAMILIES[model]][part]
    network = build(class_name, configs(model)[part])
    keys = ((model, part), class_name, part)
    expected = next(PARAMETERS[key] for key in keys if key in PARAMETERS)
    assert sum(weight.numel() for weight in network.parameters()) == expected


def test_t5_is_the_gated_one():
    network = build("T5EncoderModel", configs("flux-dev")["text_encoder_2"])
    assert type(network.encoder.block[0].layer[1].DenseReluDense).__name__ == "T5DenseGatedActDense"
    assert network.config.dense_act_fn == "gelu_new"


@pytest.mark.parametrize("model", FAMILIES)
def test_schedules_are_those_of_diffusers_scheduler(model):
    config, tokens = dict(configs(model)["scheduler"]), 1024
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)  # Flux's, by its model card
    match model.partition("-")[0]:
        case "sdxl":
            scheduler.set_timesteps(STEPS)
        case "flux":
            asked = np.linspace(1, 1 / STEPS, STEPS)
            scheduler.set_timesteps(sigmas=asked, mu=mu if model == "flux-dev" else None)
        case _:
            scheduler.set_timesteps(STEPS)
    ours = make_schedule(manifest_facts.schedule_spec(opened(model)), STEPS, tokens, whole_t=False)
    ratio = ours.sigma / ours.alpha if model == "sdxl-base" else ours.sigma
    np.testing.assert_allclose(ratio, scheduler.sigmas.numpy(), rtol=1e-5)
    np.testing.assert_allclose(ours.t[:-1], scheduler.timesteps.numpy(), rtol=1e-5)


def test_pictures_are_a_thousand_pixels_wide():
    for model, family in FAMILIES.items():
        latents = manifest_facts.latent_spec(opened(model))
        assert latents == LATENTS[family]
        length = TokenizerSpec(file="t", max_length=77, pad_id=0)
        tokenizers = dict.fromkeys(TOKENIZERS[family], length)
        defaults = manifest_facts.defaults(opened(model), latents, tokenizers)
        assert (defaults.height, defaults.width) == (1024, 1024)
        assert manifest_facts.guidance_embedding(opened(model)) == (model == "flux-dev")


@pytest.mark.parametrize("name", ["clip-l", "clip-g", "t5"])
def test_token_ids_are_those_of_an_independent_tokenizer(name):
    loaded = load_tokenizer(tokenizer(name))
    reference = REFERENCE["t5" if name == "t5" else "clip"]
    assert len(reference) >= 30
    for text, ids in reference.items():
        if name == "clip-g":
            ids = [pad for token in ids for pad in PADDING_IN_TEXT.get(token, (token,))]
        got = loaded(text).input_ids
        assert (got[:-1] if name == "t5" else got[1:-1]) == ids, text


@pytest.mark.parametrize(
    ("name", "length", "pad", "ends", "size"),
    [
        ("clip-l", 77, 49407, [49406, 49407], 49408),
        ("clip-g", 77, 0, [49406, 49407], 49408),
        ("t5", 512, 0, [1], 32100),
    ],
)
def test_marks_and_lengths(name, length, pad, ends, size):
    loaded = load_tokenizer(tokenizer(name))
    assert (loaded.model_max_length, loaded.pad_token_id, len(loaded)) == (length, pad, size)
    assert loaded("").input_ids == ends


def test_a_family_s_tokenizers_are_those_of_its_text_encoders():
    for family, names in TOKENIZERS.items():
        encoders = [part for part in PARTS[family] if part.startswith("text_encoder")]
        assert list(names) == [part.replace("text_encoder", "tokenizer") for part in encoders]
        assert TYPICAL[family] in FAMILIES
        for part, name in zip(encoders, names.values(), strict=True):
            assert (PARTS[family][part] == "T5EncoderModel") == (name == "t5")


def test_both_clips_number_the_same_tokens():
    first, second = (load_tokenizer(tokenizer(name)).get_vocab() for name in ("clip-l", "clip-g"))
    assert first == second
    assert sum(file.stat().st_size for file in VOCABULARIES.rglob("*")) < 5_000_000
