"""Files and folders that people have beside the published ones: each is read, or refused by name.

`docs/guides/export.md` has a table of them. Tokenizers and small UNets are in other files.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from eri_export import open_checkpoint
from eri_export.checkpoints.config_from_shapes.text import Identity
from eri_export.graphs.weight_names import file_names
from eri_runtime.errors import CheckpointError
from tests.support import single_files as made


def edited(checkpoint, copy, **changes):
    """A copy of a folder, other entries in its index."""
    shutil.copytree(checkpoint, copy, copy_function=shutil.copyfile)
    index = copy / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))
    return copy


@pytest.mark.parametrize(
    ("family", "pipeline"),
    [
        ("sdxl", "StableDiffusionXLInpaintPipeline"),
        ("sdxl", "StableDiffusionXLPAGPipeline"),
        ("sdxl", "StableDiffusionXLControlNetPipeline"),
        ("sdxl", "StableDiffusionXLControlNetUnionImg2ImgPipeline"),
        ("sd35", "StableDiffusion3InpaintPipeline"),
        ("sd35", "StableDiffusion3ControlNetInpaintingPipeline"),
        ("flux", "FluxInpaintPipeline"),
        ("flux", "FluxControlNetPipeline"),
    ],
)
def test_a_pipeline_of_the_same_networks_is_the_plain_one(
    request, tmp_path, caplog, family, pipeline
):
    plain = request.getfixturevalue(f"{family}_checkpoint")
    controlled = "ControlNet" in pipeline
    added = {"controlnet": ["diffusers", "ControlNetModel"]} if controlled else {}
    root = edited(plain, tmp_path / "copy", _class_name=pipeline, **added)
    with caplog.at_level(logging.WARNING):
        opened, expected = open_checkpoint(root), open_checkpoint(plain)
    assert opened.family == family
    for name, component in expected.components.items():
        assert opened.components[name].config == component.config
    assert ("without its controlnet" in caplog.text) == controlled


@pytest.mark.parametrize(
    ("pipeline", "channels", "words"),
    [
        ("StableDiffusionXLInpaintPipeline", 9, "in_channels: got an inpainting UNet, expected"),
        ("StableDiffusionXLPipeline", 9, "got an inpainting UNet"),
        ("StableDiffusionXLPipeline", 8, "got an InstructPix2Pix UNet"),
        ("StableDiffusionXLPipeline", 5, "got a network of 5 channels in, 4 out"),
        ("StableDiffusionXLInstructPix2PixPipeline", 8, "class 'StableDiffusionXLInstructPix2Pix"),
        ("FluxFillPipeline", 4, "pipeline class 'FluxFillPipeline', expected Stable"),
    ],
)
def test_denoisers_with_other_inputs_are_refused(
    sdxl_checkpoint, tmp_path, pipeline, channels, words
):
    root = edited(sdxl_checkpoint, tmp_path / "copy", _class_name=pipeline)
    config = root / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": channels}))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(root)
    assert words in str(caught.value)


@pytest.fixture(scope="module")
def whole_clip(sd35_checkpoint, tmp_path_factory):
    """The CLIP-G of the tiny SD3.5 with a model for pictures, as transformers saves both.

    Its text model's config says another width of the projection, as some published ones do.
    """
    source = sd35_checkpoint / "text_encoder_2"
    text = json.loads((source / "config.json").read_text())
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    config = CLIPConfig(
        text_config={**text, "projection_dim": 7},
        vision_config=vision,
        projection_dim=text["projection_dim"],
    )
    model = CLIPModel(config)
    given = {
        name if name.startswith("text_") else f"text_model.{name}": tensor
        for name, tensor in made.weights(source).items()
    }
    missing, unknown = model.load_state_dict(given, strict=False)
    assert not unknown
    assert not any(name.startswith("text") for name in missing)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return folder


def test_the_folder_of_a_whole_clip_is_its_text_encoder(sdxl_checkpoint, whole_clip):
    opened = open_checkpoint(sdxl_checkpoint, text_encoders=[whole_clip])
    # both encoders of the tiny SDXL are as wide; the first takes it
    component = opened.components["text_encoder"]
    assert component.origin == whole_clip
    network = made.network("CLIPTextModelWithProjection", component.config)
    names = file_names(network, component)
    ours = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(dict(component.config))).eval()
    stored = load_file(whole_clip / "model.safetensors")
    ours.load_state_dict({name: stored[key] for name, key in names.items()})
    tokens = torch.arange(3, 19)[None] % network.config.vocab_size
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(whole_clip).eval().get_text_features(tokens)
        expected = getattr(expected, "pooler_output", expected)
        assert torch.equal(ours(tokens).text_embeds, expected)


def test_sd3_does_not_project_the_clip_l_of_a_whole_clip(sd35_checkpoint, whole_clip):
    opened = open_checkpoint(sd35_checkpoint, text_encoders=[whole_clip])
    component = opened.components["text_encoder"]
    assert isinstance(component.tensors["text_projection.weight"], Identity)
    assert component.config["projection_dim"] == component.config["hidden_size"]


def test_a_text_config_that_is_none_is_refused(sdxl_checkpoint, whole_clip, tmp_path):
    copy = shutil.copytree(whole_clip, tmp_path / "clip")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "text_config": None}))
    with pytest.raises(CheckpointError, match="text_config: got None"):
        open_checkpoint(sdxl_checkpoint, text_encoders=[copy])


@pytest.mark.parametrize("layout", [made.ldm_vae, dict])
def test_what_training_left_beside_a_vae_is_not_read(sdxl_checkpoint, tmp_path, layout):
    state = layout(made.weights(sdxl_checkpoint / "vae"))
    left = {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7),
        "model_ema.decoderconv_inbias": torch.zeros(16),
        "loss.logvar": torch.zeros(()),
    }
    save_file({**state, **left}, tmp_path / "vae.safetensors")
    component = open_checkpoint(sdxl_checkpoint, vae=tmp_path / "vae.safetensors").components["vae"]
    file_names(made.network("AutoencoderKL", component.config), component)
    assert component.tensors.keys() == made.weights(sdxl_checkpoint / "vae").keys()


GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "export.md"
# a word of each row -> the tests of it
ROWS = {
    "SSD-1B": "test_the_network_of_the_config_is_built_from_the_file_alone",
    "LCM's UNet": "test_a_unet_that_embeds_guidance_gets_lcms",
    "Turbo, Lightning": "test_a_preset_draws_what_the_recipe_draws",
    "Playground 2.5": "test_playground_in_one_file_is_read_as_diffusers_reads_it",
    "indexed by": "test_a_pipeline_of_the_same_networks_is_the_plain_one",
    "takes other channels": "test_denoisers_with_other_inputs_are_refused",
    "Flux Fill": "test_denoisers_with_other_inputs_are_refused",
    "`tokenizer.json` alone": "test_tokenizer_json_alone_is_the_whole_folder",
    "`spiece.model` alone": "test_t5s_spiece_model_alone_gives_sentencepieces_ids",
    "without a vocabulary": "test_a_folder_without_a_vocabulary_is_refused",
    "whole CLIP": "test_the_folder_of_a_whole_clip_is_its_text_encoder",
    "beside a VAE": "test_what_training_left_beside_a_vae_is_not_read",
}


def test_every_row_of_the_guide_has_a_test():
    table = GUIDE.read_text().split("### Kinds of files and folders")[1].split("###")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(ROWS)
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    for row, (words, test) in zip(rows, ROWS.items(), strict=True):
        assert words in row
        assert f"def {test}(" in tests
