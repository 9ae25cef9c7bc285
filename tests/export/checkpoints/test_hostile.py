"""Weights that are damaged, hostile or something else: refused by name, never a surprise."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from eri_export import export, open_checkpoint
from eri_export.checkpoints import manifest_facts, stored_tensors
from eri_export.checkpoints.stored_tensors import read_header, read_headers
from eri_export.checkpoints.tokenizers import read_tokenizers
from eri_export.choices.precision import Policy
from eri_export.gate.parity import compare
from eri_export.graphs.recipes import recipes_for
from eri_export.graphs.recipes.text import ClipPooled, clip_recipe
from eri_export.graphs.weight_names import check_names
from eri_export.plan.plan import spec_of
from eri_export.weights.weights_file import Conversion, write_weights
from eri_runtime.bundle import safetensors_header
from eri_runtime.errors import (
    CheckpointError,
    DamagedWeightsError,
    NotACheckpointError,
    PickleError,
)
from tests.support.components import write_component
from tests.support.headers import NAMES, entry, listed, raw_file, refusal, written

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("head", "error", "words"),
    [
        (b"PK\x03\x04\x14\0\0\0\x08\0archive/data.pkl", PickleError, "eri convert"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", PickleError, "may run code"),
        (b"\x80\x04\x95\x1b\0\0\0\0\0\0\0}\x94\x8c\x01a", PickleError, "may run code"),
        (b"\x80\x02}q\0.", PickleError, "may run code"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:",
            DamagedWeightsError,
            "lfs pull",
        ),
        (b"<!DOCTYPE html>\n<html><head>", DamagedWeightsError, "a web page"),
        (b'\n<?xml version="1.0"?><Error>', DamagedWeightsError, "a web page"),
        (b"GGUF\x03\0\0\0\x10\0\0\0", DamagedWeightsError, "a GGUF file"),
    ],
)
def test_other_files_under_the_name_of_safetensors(tmp_path, head, error, words):
    for padding in (b"", b"\0" * 1000):
        assert words in refusal(written(tmp_path, head + padding), error)


def test_a_header_whose_length_begins_as_a_pickle_does(tmp_path):
    """0x0280 bytes: the first two are a pickle's, and the file is sound."""
    file = written(tmp_path, raw_file(listed(entry()).ljust(0x280)))
    assert file.read_bytes().startswith(b"\x80\x02")
    assert [each.name for each in read_header(file)] == ["a"]


def folder(path):
    path.mkdir()


def loop(path):
    path.symlink_to(path)


def beyond_a_file(path):
    path.parent.rmdir()
    path.parent.write_bytes(b"")


OBSTACLES = {
    folder: "not a regular file",
    os.mkfifo: "not a regular file",
    (lambda path: path.symlink_to("/dev/zero")): "not a regular file",
    loop: "symbolic links",
    (lambda path: path.symlink_to("nowhere")): "no such file",
    beyond_a_file: "Not a directory",
}


@pytest.mark.parametrize("make", OBSTACLES)
def test_what_is_no_readable_file(tmp_path, make):
    path = tmp_path / "weights" / "model.safetensors"
    path.parent.mkdir()
    make(path)
    missing = OBSTACLES[make] == "no such file"
    error = NotACheckpointError if missing else DamagedWeightsError
    assert OBSTACLES[make] in refusal(path, error)


def test_a_name_in_two_shards(tmp_path):
    shards = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for file in shards:
        save_file({"w": torch.ones(1)}, file)
    with pytest.raises(DamagedWeightsError, match=r"two\.safetensors: got 'w', also in one"):
        read_headers(shards)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_words_and_never_paths(tmp_path, name):
    """A name is read as it is, as the library does; who needs no such weight refuses it."""
    file = written(tmp_path, raw_file(listed(entry(json.dumps(name)[1:-1]))))
    (tensor,) = read_header(file)
    assert tensor.name == name
    write_weights(tmp_path / "out.safetensors", [Conversion(tensor, torch.float32)])
    assert set(load_file(tmp_path / "out.safetensors")) == {name}
    assert {path.name for path in tmp_path.iterdir()} == {file.name, "out.safetensors"}


# through `export`


@pytest.fixture
def broken(flux_checkpoint, tmp_path):
    """A copy of a sound checkpoint, to break."""
    return shutil.copytree(flux_checkpoint, tmp_path / "checkpoint")


def refused(checkpoint, error, *words):
    """Assert that `export` raises exactly `error`, says `words`, and leaves no file."""
    before = sorted(checkpoint.parent.rglob("*"))
    with pytest.raises(error) as caught:
        export(checkpoint, checkpoint.parent / "engines" / "bundle")
    assert caught.type is error
    for word in words:
        assert word in str(caught.value)
    left = set(checkpoint.parent.rglob("*")) - {checkpoint.parent / "engines"}
    assert sorted(left) == before


def test_hostile_names_in_a_checkpoint(broken):
    file = broken / "transformer" / WEIGHTS
    save_file({**load_file(file), **{name: torch.zeros(1) for name in NAMES}}, file)
    refused(broken, DamagedWeightsError, "unknown '', '\\n\\x1b[2J', '../../x', '/etc/passwd'")


@pytest.mark.parametrize(
    ("raw", "error", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", DamagedWeightsError, "git lfs pull"),
        (b"PK\x03\x04 model.pkl", PickleError, "may run code"),
        (raw_file(listed(entry(), entry())), DamagedWeightsError, "given twice"),
    ],
)
def test_damage_in_a_checkpoint(broken, raw, error, word):
    (broken / "vae" / WEIGHTS).write_bytes(raw)
    refused(broken, error, WEIGHTS, word)


def test_a_pipe_as_a_shard(broken):
    os.mkfifo(broken / "vae" / "pipe.safetensors")
    index = {"weight_map": {"a": "pipe.safetensors"}}
    (broken / "vae" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    refused(broken, DamagedWeightsError, "pipe.safetensors", "not a regular file")


def shorter(file):
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize(
    ("change", "words"), [(shorter, "end of file inside"), (os.unlink, "no such file")]
)
def test_a_file_that_changes_during_the_export(broken, change, words):
    """It is read when the network has been traced, which takes minutes for a large one."""

    def progress(event):
        if (event.component, event.stage, event.done) == ("denoiser", "trace", 1):
            change(broken / "transformer" / WEIGHTS)

    engines = broken.parent / "engines"
    with pytest.raises((DamagedWeightsError, NotACheckpointError), match=words):
        export(broken, engines / "bundle", progress=progress)
    assert not list(engines.iterdir())


@pytest.mark.parametrize("left", [0, 1, 7, 63, 64, 65, 399])
def test_a_tensor_whose_file_has_shrunk(tmp_path, monkeypatch, left):
    monkeypatch.setattr(stored_tensors, "CHUNK", 64)
    file = written(tmp_path, save({"w": torch.ones(100)}))
    (tensor,) = read_header(file)
    os.truncate(file, tensor.start + left)
    with pytest.raises(DamagedWeightsError, match="end of file inside 'w'"):
        list(tensor.chunks())


# types

FP8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
UNREADABLE = sorted(set(safetensors_header.BITS) - set(stored_tensors.TORCH_DTYPES))


@pytest.mark.parametrize("dtype", UNREADABLE)
def test_a_type_torch_cannot_convert_is_named_when_it_is_read(tmp_path, dtype):
    bits = safetensors_header.BITS[dtype]  # of one element, and bytes of eight
    text = listed(entry("w", dtype, shape="[8]", offsets=f"[0,{bits}]"))
    (tensor,) = read_header(written(tmp_path, raw_file(text, bytes(bits))))
    with pytest.raises(DamagedWeightsError, match=f"'w': got type {dtype}, expected one of F64"):
        list(tensor.chunks())


def all_values(dtype):
    """Every finite value of an 8-bit type."""
    values = torch.arange(256, dtype=torch.uint8).view(dtype)
    return values[torch.isfinite(values.float())]


@pytest.mark.parametrize("name", FP8)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_8_bit_float_is_converted_as_torch_does(tmp_path, name, dtype):
    values = all_values(FP8[name])
    (tensor,) = read_header(written(tmp_path, save({"w": values})))
    assert tensor.dtype == name
    write_weights(tmp_path / "out.safetensors", [Conversion(tensor, dtype)])
    assert torch.equal(load_file(tmp_path / "out.safetensors")["w"], values.to(dtype))


@pytest.mark.parametrize("name", FP8)
def test_an_8_bit_nan_is_refused(tmp_path, name):
    (tensor,) = read_header(
        written(tmp_path, save({"w": torch.tensor([1, torch.nan]).to(FP8[name])}))
    )
    with pytest.raises(DamagedWeightsError, match="'w': got NaN or Inf"):
        list(Conversion(tensor, torch.float32).chunks())


def clip(checkpoint):
    source = open_checkpoint(checkpoint).components["text_encoder"]
    return clip_recipe(source, "fp32", ClipPooled, 16)


def test_a_component_in_8_bits_is_exported(broken, tmp_path, shared_trace):
    """As the smaller files of Flux are: every matrix in fp8, without a scale."""
    file = broken / "text_encoder" / "model.safetensors"
    save_file({k: v.to(torch.float8_e4m3fn) for k, v in load_file(file).items()}, file)
    recipe = clip(broken)
    graph = write_component(shared_trace(recipe), recipe, tmp_path / "part")
    assert compare(recipe, graph, spec_of(recipe), None).report
    source = load_file(file)
    for name, value in load_file(graph.with_name("weights.safetensors")).items():
        assert torch.equal(value, source[name].float()), name


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64])
def test_a_weight_that_is_no_real_number(broken, dtype):
    file = broken / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("fc1.weight"))
    save_file({**tensors, name: tensors[name].to(dtype)}, file)
    with pytest.raises(DamagedWeightsError, match=r"fc1.weight.*F8_E4M3.*not quantised"):
        check_names(clip(broken))


def test_scales_beside_8_bit_weights_are_not_passed_over(broken):
    file = broken / "text_encoder" / "model.safetensors"
    save_file({**load_file(file), "scaled_fp8": torch.zeros(1)}, file)
    with pytest.raises(DamagedWeightsError, match="'scaled_fp8': got no scales"):
        check_names(clip(broken))


# configs that no network can be made from


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("vae", {"latent_channels": "x"}),
        ("vae", {"scaling_factor": [0]}),
        ("vae", {"norm_num_groups": 0}),
        ("scheduler", {"num_train_timesteps": "x"}),
        ("scheduler", {"max_shift": [1]}),
        ("text_encoder", {"vocab_size": []}),
        ("text_encoder_2", {"num_layers": 10**9}),
        ("transformer", {"attention_head_dim": None}),
        ("transformer", {"num_single_layers": 10**9}),
    ],
)
def test_a_config_that_makes_no_network(flux_checkpoint, tmp_path, part, changes):
    """Whatever the libraries raise for it, and before they make a billion blocks."""
    opened = open_checkpoint(flux_checkpoint)
    config = {**opened.configs.get(part, opened.scheduler), **changes}
    component = opened.components.get(part)
    wrong = {part: replace(component, config=config)} if component else {}
    checkpoint = replace(
        opened,
        components={**opened.components, **wrong},
        configs={**opened.configs, part: config},
        scheduler=config if component is None else opened.scheduler,
    )
    tokenizers = {name: each.spec for name, each in read_tokenizers(opened).items()}
    plan(opened, tokenizers)  # nothing else is wrong with it
    with pytest.raises(CheckpointError) as caught:
        plan(checkpoint, tokenizers)
    assert caught.type is CheckpointError
    assert "config" in str(caught.value)


def plan(checkpoint, tokenizers):
    """All that an export does before it traces."""
    manifest_facts.schedule_spec(checkpoint)
    latents = manifest_facts.latent_spec(checkpoint)
    defaults = manifest_facts.defaults(checkpoint, latents, tokenizers)
    for recipe in recipes_for(checkpoint, Policy(), latents, defaults, tokenizers):
        check_names(recipe)
