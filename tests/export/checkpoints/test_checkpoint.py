"""What `export` refuses, by which error, and that it leaves nothing behind."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from eri_export import export, open_checkpoint
from eri_export.graphs.recipes.text import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
from eri_export.graphs.weight_names import file_names
from eri_runtime.errors import (
    CheckpointError,
    DamagedWeightsError,
    NotACheckpointError,
    PickleError,
    UnknownNameError,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def broken(sd35_checkpoint, tmp_path):
    """A copy of a sound checkpoint, to break."""
    return shutil.copytree(sd35_checkpoint, tmp_path / "checkpoint")


def refused(checkpoint, error, *words):
    """Assert that `export` raises exactly `error`, says `words`, and leaves no file."""
    shop = checkpoint.parent / "engines"
    with pytest.raises(error) as caught:
        export(checkpoint, shop / "bundle")
    assert caught.type is error
    for word in words:
        assert word in str(caught.value)
    assert not shop.exists() or not list(shop.iterdir())


def edit_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(file, edit):
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def test_missing_path(tmp_path):
    refused(tmp_path / "nowhere", NotACheckpointError, "nowhere", "no such path")


def test_folder_without_index(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    refused(tmp_path / "photos", NotACheckpointError, "cat.png", "model_index.json")


def test_a_file_of_no_known_network(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", CheckpointError, "'x'", "no known network")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".PTH"])
def test_pickle_is_refused_unread(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x04 not even a pickle")
    refused(path, PickleError, path.name, "safetensors")


def test_folder_with_pickled_weights_only(broken):
    (broken / "transformer" / WEIGHTS).rename(
        broken / "transformer" / "diffusion_pytorch_model.bin"
    )
    refused(broken, PickleError, "diffusion_pytorch_model.bin")


def test_folder_without_weights(broken):
    (broken / "vae" / WEIGHTS).unlink()
    refused(broken, NotACheckpointError, "vae", "no weights")


def test_index_that_is_not_json(broken):
    (broken / "model_index.json").write_text("{")
    refused(broken, NotACheckpointError, "model_index.json")


def test_unknown_pipeline(broken):
    edit_json(broken / "model_index.json", _class_name="AllegroPipeline")
    refused(broken, CheckpointError, "AllegroPipeline", "StableDiffusionXLPipeline")


def test_component_of_another_class(broken):
    edit_json(broken / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    refused(broken, CheckpointError, "'vae'", "AutoencoderTiny", "AutoencoderKL")


def test_denoiser_that_reads_more_than_latents(broken):
    edit_json(broken / "transformer" / "config.json", in_channels=33)
    refused(broken, CheckpointError, "in_channels", "33", "16")


def test_settings_left_out_are_diffusers_own(broken):
    file = broken / "vae" / "config.json"
    config = json.loads(file.read_text())
    del config["scaling_factor"]
    file.write_text(json.dumps(config))
    assert open_checkpoint(broken).components["vae"].config["scaling_factor"] == 0.18215


def test_missing_component(broken):
    edit_json(broken / "model_index.json", transformer=[None, None])
    refused(broken, CheckpointError, "transformer", "SD3Transformer2DModel")


def test_missing_component_folder(broken):
    shutil.rmtree(broken / "vae")
    refused(broken, NotACheckpointError, "vae")


def test_unreadable_tokenizer(broken):
    (broken / "tokenizer" / "tokenizer.json").write_text("{}")
    refused(broken, CheckpointError, "tokenizer")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights(broken, kept):
    file = broken / "text_encoder_3" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refused(broken, DamagedWeightsError, "model.safetensors")


def test_overlapping_weights(broken):
    file = broken / "vae" / WEIGHTS
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    first, second = [name for name in header if name.endswith("conv1.bias")][:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    refused(broken, DamagedWeightsError, WEIGHTS)


def test_missing_weight(broken):
    edit_tensors(broken / "vae" / WEIGHTS, lambda tensors: tensors.pop("decoder.conv_in.bias"))
    refused(broken, DamagedWeightsError, "no decoder.conv_in.bias", "AutoencoderKL")


def test_unknown_weight(broken):
    def edit(tensors):
        tensors["lora.up"] = torch.zeros(1)

    edit_tensors(broken / "transformer" / WEIGHTS, edit)
    refused(broken, DamagedWeightsError, "unknown lora.up", "SD3Transformer2DModel")


def test_weight_of_another_shape(broken):
    def edit(tensors):
        tensors["proj_out.bias"] = torch.zeros(3)

    edit_tensors(broken / "transformer" / WEIGHTS, edit)
    refused(broken, DamagedWeightsError, "proj_out.bias", "[3]", "[64]")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite(broken, value):
    def edit(tensors):
        tensors["proj_out.bias"][5] = value

    edit_tensors(broken / "transformer" / WEIGHTS, edit)
    refused(broken, DamagedWeightsError, "proj_out.bias", "NaN or Inf")


def test_unknown_precision(sd35_checkpoint, tmp_path):
    with pytest.raises(UnknownNameError, match=r"fp8.*fp32 or fp16 or bf16"):
        export(sd35_checkpoint, tmp_path / "bundle", precision="fp8")
    assert not list(tmp_path.iterdir())


def test_shards_are_read_as_one(sd35_checkpoint, broken):
    file = broken / "transformer" / WEIGHTS
    whole = open_checkpoint(sd35_checkpoint).components["transformer"].tensors
    names = sorted(whole)
    tensors, weight_map = load_file(file), {}
    for number, part in enumerate((names[::2], names[1::2])):
        shard = f"part-{number}.safetensors"
        save_file({name: tensors[name] for name in part}, file.with_name(shard))
        weight_map |= dict.fromkeys(part, shard)
    file.with_name(f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    file.unlink()
    split = open_checkpoint(broken).components["transformer"].tensors
    assert len({tensor.file for tensor in split.values()}) == 2
    for name in names:
        assert torch.equal(torch.cat([*split[name].chunks()]), torch.cat([*whole[name].chunks()]))


def test_a_unet_conditioned_on_other_things(sdxl_checkpoint, tmp_path):
    root = shutil.copytree(sdxl_checkpoint, tmp_path / "checkpoint")
    edit_json(root / "unet" / "config.json", addition_embed_type="text")
    refused(root, CheckpointError, "addition_embed_type", "text", "SDXL's own UNet")


def test_a_guidance_embedding_without_its_weight_is_damage(sdxl_checkpoint, tmp_path):
    root = shutil.copytree(sdxl_checkpoint, tmp_path / "checkpoint")
    edit_json(root / "unet" / "config.json", time_cond_proj_dim=256)
    refused(root, DamagedWeightsError, "no time_embedding.cond_proj.weight")


@pytest.mark.parametrize("shard", ["../vae/" + WEIGHTS, "/etc/passwd"])
def test_an_index_that_points_outside_its_folder(broken, shard):
    index = broken / "transformer" / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"proj_out.bias": shard}}))
    refused(broken, DamagedWeightsError, index.name, shard, "beside the index")


def test_digest_follows_config_and_shapes(sd35_checkpoint, broken):
    sound = open_checkpoint(sd35_checkpoint).digest()
    assert open_checkpoint(broken).digest() == sound
    edit_json(broken / "vae" / "config.json", scaling_factor=0.5)
    assert open_checkpoint(broken).digest() != sound


def renamed(component, change):
    """The component with its file's tensors renamed, and the network that reads it."""
    file = component.origin / "model.safetensors"
    save_file({change(name): value for name, value in load_file(file).items()}, file)


def test_clip_names_of_transformers_4(flux_checkpoint, tmp_path):
    root = shutil.copytree(flux_checkpoint, tmp_path / "checkpoint")
    renamed(open_checkpoint(root).components["text_encoder"], lambda name: f"text_model.{name}")
    source = open_checkpoint(root).components["text_encoder"]
    names = file_names(CLIPTextModel(CLIPTextConfig.from_dict(dict(source.config))), source)
    assert names["final_layer_norm.bias"] == "text_model.final_layer_norm.bias"
    assert set(names.values()) == set(source.tensors)


def test_either_name_of_a_tied_weight(flux_checkpoint, tmp_path):
    root = shutil.copytree(flux_checkpoint, tmp_path / "checkpoint")
    swap = {"shared.weight": "encoder.embed_tokens.weight"}
    renamed(open_checkpoint(root).components["text_encoder_2"], lambda name: swap.get(name, name))
    source = open_checkpoint(root).components["text_encoder_2"]
    names = file_names(T5EncoderModel(T5Config.from_dict(dict(source.config))), source)
    assert names["shared.weight"] == "encoder.embed_tokens.weight"
    assert names["encoder.embed_tokens.weight"] == "encoder.embed_tokens.weight"
