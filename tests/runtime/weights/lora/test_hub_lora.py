"""LoRAs by their id on the Hugging Face Hub, which is a folder here: nothing is downloaded."""

from __future__ import annotations

import json
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import eri_runtime as eri
from eri_runtime.errors import (
    DamagedWeightsError,
    HubError,
    NotACheckpointError,
    PickleError,
    UnknownNameError,
)
from eri_runtime.weights.lora import find_lora, lora_name, read_lora
from eri_runtime.weights.lora.peft_config import METADATA
from tests.support.loras import base_weights, dotted, low_rank

NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONFIG = {"peft_type": "LORA", "lora_alpha": 8}


@pytest.fixture(scope="module")
def tensors(sdxl_checkpoint):
    shape = base_weights(sdxl_checkpoint)["denoiser"][f"{NAME}.weight"].shape
    return low_rank({NAME: shape}, dotted("base_model.model.unet."))


@pytest.fixture
def repositories(tmp_path, tensors):
    """Repositories as trainers upload them, by name."""
    files = {
        "eri/peft": ["adapter_model.safetensors", "adapter_config.json", "README.md"],
        "eri/diffusers": ["pytorch_lora_weights.safetensors", "checkpoint-9.safetensors"],
        "eri/civitai": ["my style v2.safetensors", "preview.png"],
        "eri/many": ["a.safetensors", "b.safetensors", "sub/c.safetensors"],
        "eri/pickle": ["pytorch_lora_weights.bin"],
    }
    for repository, names in files.items():
        for name in names:
            file = tmp_path / "hub" / repository / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".safetensors"):
                save_file(tensors, file)
            else:
                file.write_text(json.dumps(CONFIG))
    return tmp_path / "hub"


@pytest.fixture
def online(monkeypatch, repositories, tmp_path):
    """The Hub's library with its two calls served from `repositories`; returns what was fetched."""
    fetched: list[str] = []

    class Api:
        def model_info(self, name, **_):
            root = repositories / name
            names = [str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()]
            siblings = [{"rfilename": each} for each in sorted(names)]
            return huggingface_hub.ModelInfo(id=name, siblings=siblings)

    def snapshot(name, *, allow_patterns, **_):
        target = tmp_path / "cache" / name
        for file in (repositories / name).rglob("*"):
            inside = str(file.relative_to(repositories / name))
            if file.is_file() and any(fnmatch(inside, pattern) for pattern in allow_patterns):
                (target / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / inside)
                fetched.append(f"{name}/{inside}")
        return str(target)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return fetched


FOUND = {
    "eri/peft": ("adapter_model.safetensors", "peft"),
    "eri/diffusers": ("pytorch_lora_weights.safetensors", "diffusers"),
    "eri/civitai": ("my style v2.safetensors", "civitai"),
    "eri/many:b.safetensors": ("b.safetensors", "b"),
    "eri/many:sub/c.safetensors": ("c.safetensors", "c"),
    "eri/diffusers:checkpoint-9.safetensors": ("checkpoint-9.safetensors", "checkpoint-9"),
}


@pytest.mark.parametrize("text", FOUND)
def test_the_file_of_a_repository(online, tensors, text):
    name, called = FOUND[text]
    read = read_lora(text)
    assert read.file.name == name
    assert lora_name(text) == called
    assert read.keys() == tensors.keys()
    assert all(np.array_equal(read[key], tensors[key]) for key in tensors)
    config = {"eri/peft/adapter_config.json"} if text == "eri/peft" else set()
    repository, _, file = text.partition(":")
    assert set(online) == {f"{repository}/{file or name}"} | config
    assert (METADATA in read.metadata) == bool(config)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("eri/many", HubError, ("a.safetensors, b.safetensors", "eri/many:a.safetensors")),
        ("eri/many:d.safetensors", HubError, ("a.safetensors", "expected d.safetensors")),
        ("eri/pickle", HubError, ("no safetensors file", "one LoRA")),
        (
            "eri/pickle:pytorch_lora_weights.bin",
            PickleError,
            ("pickled", "eri convert pytorch_lora_weights.bin"),
        ),
        ("eri/none.safetensors", NotACheckpointError, ("eri/none.safetensors", "no such file")),
    ],
)
@pytest.mark.usefixtures("online")
def test_what_is_no_one_lora(text, error, words):
    with pytest.raises(error) as caught:
        read_lora(text)
    assert caught.type is error
    for word in words:
        assert word in str(caught.value)


def test_a_path_goes_before_an_id(online, tmp_path, monkeypatch, tensors):
    (tmp_path / "eri" / "peft").mkdir(parents=True)
    save_file(tensors, tmp_path / "eri" / "peft" / "x.safetensors")
    monkeypatch.chdir(tmp_path)
    assert find_lora("eri/peft") == Path("eri/peft/x.safetensors")
    assert online == []


@pytest.mark.parametrize("text", ["./eri/peft", "eri/peft/", "x" * 999])
def test_what_can_only_be_a_path_is_never_downloaded(online, text):
    assert find_lora(text) == Path(text)
    with pytest.raises((NotACheckpointError, DamagedWeightsError)):  # or a name that is too long
        read_lora(text)
    assert online == []


def out_of_reach(*_, **__):
    raise OSError("no network")


@pytest.fixture
def offline(monkeypatch, tmp_path, repositories):
    """No Hub; its cache has one repository's only LoRA."""
    snapshot = tmp_path / "cache" / "models--eri--peft" / "snapshots" / ("a" * 40)
    shutil.copytree(repositories / "eri/peft", snapshot)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", out_of_reach)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return snapshot


def test_the_cache_serves_if_the_hub_is_out_of_reach(offline, caplog):
    assert find_lora("eri/peft") == offline / "adapter_model.safetensors"
    assert "eri/peft: the Hub is out of reach" in caplog.text
    for text in ("eri/diffusers", "eri/peft:other.safetensors"):
        with pytest.raises(HubError, match=r"no such path, and no answer from .*no network"):
            find_lora(text)


def test_a_cached_file_of_unknown_others_must_be_named(offline, repositories):
    """The cache may hold one of several: which the repository's LoRA is, only the Hub knows."""
    snapshot = offline.parents[2] / "models--eri--many" / "snapshots" / ("b" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(repositories / "eri/many/b.safetensors", snapshot)
    with pytest.raises(HubError) as caught:
        find_lora("eri/many")
    assert "only b.safetensors in its cache" in str(caught.value)
    assert caught.value.fix == "name it, as eri/many:b.safetensors"
    assert find_lora("eri/many:b.safetensors") == snapshot / "b.safetensors"
    shutil.copy(snapshot / "b.safetensors", snapshot / "pytorch_lora_weights.safetensors")
    assert find_lora("eri/many").name == "pytorch_lora_weights.safetensors"


def test_without_the_hubs_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r"eri/peft: got no such path.*pip install huggingface_hub"):
        find_lora("eri/peft")


@pytest.mark.usefixtures("online")
def test_a_pipeline_loads_an_id(sdxl_bundle, tensors, tmp_path):
    """Named after the repository, merged as the same folder is."""
    name = f"{NAME}.weight"
    with eri.load(sdxl_bundle) as pipe:
        assert pipe.load_lora("eri/peft", 0.5) == "peft"
        merged = pipe._live.overrides("denoiser")[name]
        pipe.set_loras({"eri/many:a.safetensors": 1.0, "peft": 0.0})
        assert pipe.loras == {"a": 1.0, "peft": 0.0}
        with pytest.raises(UnknownNameError, match="nothing"):
            pipe.set_loras({"nothing": 1.0})
        pipe.unload_loras()
        base = np.asarray(pipe._live.stored("denoiser")[name])
    down, up = (tensors[f"base_model.model.unet.{NAME}.lora_{half}.weight"] for half in "AB")
    expected = base + 0.5 * 8 / len(down) * (up @ down)
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-5)
    assert load_file(find_lora("eri/peft")).keys() == tensors.keys()
