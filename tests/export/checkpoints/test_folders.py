"""Variants, shards, links and absent components: the same tensors, however a folder was saved."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.pipelines.pipeline_loading_utils import variant_compatible_siblings
from safetensors.torch import load_file, save_file

from eri_export import open_checkpoint
from eri_export.checkpoints.shipped_configs import configs
from eri_export.checkpoints.sources.folder import open_folder
from eri_export.checkpoints.sources.weight_files import choose, variants
from eri_runtime.errors import CheckpointError, DamagedWeightsError, NotACheckpointError
from tests.support.checkpoints import all_files

SHARD = "40KB"  # a few for the transformer, one a tensor for the VAE's largest
WHOLE = "diffusion_pytorch_model.safetensors"
INDEX = f"{WHOLE}.index.json"
SAVED = {
    "variant": {"variant": "fp16"},
    "shards": {"max_shard_size": SHARD},
    "variant-shards": {"variant": "fp16", "max_shard_size": SHARD},
}


@pytest.fixture(scope="module")
def saved(sd35_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """One checkpoint in every way diffusers saves one, and as a Hub cache keeps it."""
    shop = tmp_path_factory.mktemp("folders")
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd35_checkpoint)
    for name, words in SAVED.items():
        pipeline.save_pretrained(shop / name, **words)
    return {
        "plain": sd35_checkpoint,
        "links": linked(sd35_checkpoint, shop / "links"),
        **{name: shop / name for name in SAVED},
    }


def linked(folder: Path, copy: Path) -> Path:
    """`folder` as a Hub cache keeps a snapshot: relative links to blobs without an ending."""
    blobs = copy.with_name(f"{copy.name}-blobs")
    blobs.mkdir()
    for number, file in enumerate(all_files(folder)):
        link = copy / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blobs / str(number))
        link.symlink_to(
            Path(*[".."] * len(file.relative_to(folder).parts), blobs.name, str(number))
        )
    return copy


@pytest.fixture
def copied(saved, tmp_path):
    """A way of saving, to break or to add to."""
    return lambda name: shutil.copytree(saved[name], tmp_path / "checkpoint")


def values(component):
    """Every tensor's type, shape and bytes."""
    return {
        name: (tensor.dtype, tensor.shape, torch.cat([*tensor.chunks()]).numpy().tobytes())
        for name, tensor in component.tensors.items()
    }


def edit_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("name", ["links", *SAVED])
def test_every_way_of_saving_holds_the_same_tensors(saved, name):
    plain, other = open_checkpoint(saved["plain"]), open_folder(saved[name])
    for part, component in plain.components.items():
        assert values(other.components[part]) == values(component)
    files = {span.file for t in other.denoiser.tensors.values() for span in t.spans}
    assert (len(files) > 1) == ("shards" in name)


def test_a_digest_does_not_depend_on_where_the_files_lie(saved):
    assert open_folder(saved["links"]).digest() == open_folder(saved["plain"]).digest()
    assert open_folder(saved["variant"]).digest() != open_folder(saved["plain"]).digest()


# variants

PUBLISHED = [
    "model_index.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.fp16.bin",
    "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
    "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
    "vae/diffusion_pytorch_model.safetensors.index.json",
    "text_encoder/model.safetensors",
    "text_encoder/flax_model.msgpack",
    "text_encoder_2/model.fp16-00001-of-00002.safetensors",
    "text_encoder_2/model.fp16-00002-of-00002.safetensors",
    "text_encoder_2/model.safetensors.index.fp16.json",
    "text_encoder_2/model.safetensors.index.json",
    "text_encoder_2/model-00001-of-00003.safetensors",
    "transformer/diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00002.fp16.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.fp16.index.json",
]


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_files_of_a_variant_are_those_diffusers_takes(variant):
    expected, _ = variant_compatible_siblings(PUBLISHED, variant, ignore_patterns=["*.bin"])
    got = set()
    for folder in {name.partition("/")[0] for name in PUBLISHED[1:]}:
        names = [name.partition("/")[2] for name in PUBLISHED if name.startswith(f"{folder}/")]
        found = variants(names)
        if variant in found or None in found:
            got |= {f"{folder}/{name}" for name in choose(Path(folder), names, variant)}
    assert got == {name for name in expected if not name.endswith((".bin", ".msgpack"))}


def test_plain_weights_come_first(copied, saved):
    root = copied("plain")
    file = root / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({"other": torch.zeros(1)}, file)
    plain = open_folder(saved["plain"]).components["vae"]
    assert values(open_folder(root).components["vae"]) == values(plain)
    assert list(open_folder(root, variant="fp16").components["vae"].tensors) == ["other"]


def test_a_component_without_the_variant_is_read_plain(copied, saved, caplog):
    root = copied("variant")
    shutil.copyfile(saved["plain"] / "vae" / WHOLE, root / "vae" / WHOLE)
    (root / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    checkpoint = open_folder(root, variant="fp16")
    with caplog.at_level(logging.WARNING):
        assert {t.file.name for t in checkpoint.components["vae"].tensors.values()} == {WHOLE}
        assert not caplog.records[1:]
        assert len(checkpoint.denoiser.tensors) > 0
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "weights are plain ones, for lack of 'fp16'"
    ]


def test_the_only_variant_is_taken_and_said(saved, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(open_folder(saved["variant"]).denoiser.tensors) > 0
    assert "weights are 'fp16', for lack of plain ones" in caplog.text


def test_two_variants_and_no_plain_weights(copied):
    root = copied("variant")
    file = root / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copyfile(file, file.with_name("diffusion_pytorch_model.bf16.safetensors"))
    expected = r"vae: .*'bf16', 'fp16', expected plain ones; add `--variant bf16`"
    with pytest.raises(CheckpointError, match=expected):
        _ = open_folder(root).components["vae"].tensors
    assert open_folder(root, variant="bf16").components["vae"].tensors


@pytest.mark.parametrize(
    ("name", "known"), [("plain", "only of none"), ("variant", "only of fp16")]
)
def test_a_variant_that_no_component_has(saved, name, known):
    with pytest.raises(CheckpointError, match=f"variant 'bf16'.*{known}"):
        open_folder(saved[name], variant="bf16")


# shards


def broken(root, **changes):
    edit_json(root / "transformer" / INDEX, **changes)
    return open_folder(root).denoiser


def weight_map(root):
    return json.loads((root / "transformer" / INDEX).read_text())["weight_map"]


@pytest.mark.parametrize("given", [None, [], ["a"], {"proj_out.bias": 1}, {"a": None}, "text"])
def test_an_index_that_maps_no_names_to_names(copied, given):
    with pytest.raises(DamagedWeightsError, match=r"index.json: got weight_map"):
        _ = broken(copied("shards"), weight_map=given).tensors


@pytest.mark.parametrize(
    "shard",
    [f"../vae/{WHOLE}", "/etc/passwd", "a\\b.safetensors", "..", "", "x" * 5000, "model.bin"],
)
def test_a_shard_that_is_not_beside_its_index(copied, shard):
    with pytest.raises(DamagedWeightsError, match="beside the index"):
        _ = broken(copied("shards"), weight_map={"proj_out.bias": shard}).tensors


def test_an_index_that_names_what_its_shard_lacks(copied):
    root = copied("shards")
    where = weight_map(root)
    with pytest.raises(DamagedWeightsError, match=r"'ghost'.*no shard with it, expected it in"):
        _ = broken(root, weight_map={**where, "ghost": where["proj_out.bias"]}).tensors


def test_an_index_that_names_the_wrong_shard(copied):
    root = copied("shards")
    where = weight_map(root)
    other = next(shard for shard in where.values() if shard != where["proj_out.bias"])
    with pytest.raises(DamagedWeightsError, match=rf"'proj_out.bias'.*expected it in {other}"):
        _ = broken(root, weight_map={**where, "proj_out.bias": other}).tensors


def test_a_shard_with_more_than_the_index_names(copied):
    root = copied("shards")
    file = root / "transformer" / weight_map(root)["proj_out.bias"]
    save_file({**load_file(file), "stowaway": torch.zeros(1)}, file)
    with pytest.raises(DamagedWeightsError, match=r"'stowaway'.*no tensor but the index's"):
        _ = open_folder(root).denoiser.tensors


def test_a_missing_shard(copied):
    root = copied("shards")
    (root / "transformer" / weight_map(root)["proj_out.bias"]).unlink()
    with pytest.raises(NotACheckpointError, match="no such path"):
        _ = open_folder(root).denoiser.tensors


def test_shards_without_their_index(copied):
    root = copied("variant-shards")
    (root / "transformer" / "diffusion_pytorch_model.safetensors.index.fp16.json").unlink()
    with pytest.raises(DamagedWeightsError, match="index of these shards"):
        _ = open_folder(root).denoiser.tensors


def test_a_link_to_a_blob_that_is_gone(saved, tmp_path):
    root = linked(saved["plain"], tmp_path / "links")
    (root / "transformer" / WHOLE).resolve().unlink()
    with pytest.raises(NotACheckpointError, match=r"no such path.*link to one that is still there"):
        _ = open_folder(root).denoiser.tensors


# absent components


def without(root, *names):
    for name in names:
        shutil.rmtree(root / name)
    edit_json(root / "model_index.json", **{name: [None, None] for name in names})
    return root


def test_a_pipeline_saved_without_t5(copied):
    checkpoint = open_folder(without(copied("plain"), "text_encoder_3", "tokenizer_3"))
    assert list(checkpoint.components) == ["transformer", "vae", "text_encoder", "text_encoder_2"]
    assert list(checkpoint.tokenizers) == ["tokenizer", "tokenizer_2"]
    assert "text_encoder_3" not in checkpoint.configs
    assert len(checkpoint.digest()) == 64


def test_a_denoiser_alone_has_the_published_vae_s_latents(copied):
    names = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    checkpoint = open_folder(without(copied("plain"), *names))
    assert list(checkpoint.components) == ["transformer"]
    assert checkpoint.tokenizers == {}
    published = configs("sd3.5-medium")["vae"]
    assert {key: checkpoint.configs["vae"][key] for key in published} == published


def test_a_pipeline_without_its_denoiser(copied):
    with pytest.raises(CheckpointError, match="'transformer': got none"):
        open_folder(without(copied("plain"), "transformer"))


def test_an_index_that_does_not_speak_of_a_component(copied):
    root = copied("plain")
    index = json.loads((root / "model_index.json").read_text())
    del index["text_encoder_3"]
    (root / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="'text_encoder_3': got none"):
        open_folder(root)


def test_a_refiner_is_no_sdxl_without_a_text_encoder(sdxl_checkpoint, tmp_path):
    root = without(shutil.copytree(sdxl_checkpoint, tmp_path / "checkpoint"), "text_encoder")
    assert "text_encoder" not in open_folder(root).components
    edit_json(root / "model_index.json", requires_aesthetics_score=True)
    with pytest.raises(CheckpointError, match="requires_aesthetics_score: got an SDXL refiner"):
        open_folder(root)
