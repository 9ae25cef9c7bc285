"""Adapters that peft saves, with `adapter_config.json`: merged weights are peft's."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file

from eri_runtime.errors import LoraError
from eri_runtime.weights.lora import find_lora, lora_name, peft_config, read_lora
from eri_runtime.weights.lora.peft_config import METADATA, matches, read_alphas
from tests.support.loras import assert_same, ours

TARGETS = ["to_q", "to_k", "to_out.0", "conv1", "ff.net.2"]
CONFIGS = {
    "alpha": {"lora_alpha": 5},
    "alpha 0 of one": {"lora_alpha": 4, "alpha_pattern": {"to_k": 0}},
    "rank-stabilised": {"lora_alpha": 5, "use_rslora": True},
    "patterns": {
        "lora_alpha": 5,
        "rank_pattern": {r"down_blocks\..*attn1\.to_q": 2, r"attn2\.to_(q|k)": 3},
        "alpha_pattern": {r"up_blocks\.\d\..*attn2\.to_q": 1, r"attn1\.to_(q|k)": 7, "conv1": 2},
    },
    "DoRA": {"lora_alpha": 5, "use_dora": True, "alpha_pattern": {r".*attn2.*": 2}},
    "biases": {"lora_alpha": 3, "lora_bias": True, "target_modules": ["conv1", "to_out.0"]},
}


def randomise(model):
    """Values for every factor, so that none is the zero it is made as."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            value.data = 0.2 * torch.randn(value.shape, generator=generator)
        if "magnitude" in name:
            value.data *= 1 + 0.1 * torch.rand(value.shape, generator=generator)


@pytest.fixture
def adapter(request, sdxl_checkpoint, tmp_path):
    """A folder that peft saved, and the UNet's weights with that adapter merged by peft."""
    network = UNet2DConditionModel.from_pretrained(sdxl_checkpoint / "unet")
    config = LoraConfig(**{"r": 4, "target_modules": TARGETS, **request.param})
    model = get_peft_model(network, config)
    randomise(model)
    model.save_pretrained(tmp_path / "style")  # which sorts the patterns
    again = UNet2DConditionModel.from_pretrained(sdxl_checkpoint / "unet")
    read = PeftModel.from_pretrained(again, tmp_path / "style")
    merged = read.merge_and_unload().state_dict()
    return tmp_path / "style", {name: value.numpy() for name, value in merged.items()}


# peft takes the bias of an update for an incomplete factor
@pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape")
@pytest.mark.parametrize("adapter", CONFIGS.values(), ids=CONFIGS, indirect=True)
def test_merged_weights_are_pefts(adapter, sdxl_checkpoint):
    folder, expected = adapter
    merged = ours(sdxl_checkpoint, "sdxl", read_lora(folder))
    assert_same({"denoiser": merged["denoiser"]}, {"denoiser": expected})


@pytest.mark.parametrize("adapter", [CONFIGS["patterns"]], indirect=True)
def test_the_config_counts_for_the_file_too_and_for_tensors_not(adapter, sdxl_checkpoint):
    folder, expected = adapter
    file = folder / "adapter_model.safetensors"
    merged = ours(sdxl_checkpoint, "sdxl", read_lora(file))
    assert_same({"denoiser": merged["denoiser"]}, {"denoiser": expected})
    alone = ours(sdxl_checkpoint, "sdxl", load_file(file))["denoiser"]
    assert any(not np.array_equal(alone[name], merged["denoiser"][name]) for name in alone)


def test_every_option_of_peft_is_decided_on():
    """An option that a new version of peft brings must be put in one of the lists."""
    known = {
        *peft_config.HONOURED,
        *peft_config.IN_THE_TENSORS,
        *peft_config.HARMLESS,
        *peft_config.REFUSED,
        "init_lora_weights",
    }
    assert {field.name for field in dataclasses.fields(LoraConfig)} <= known


@pytest.mark.parametrize("scope", ["", "unet."])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, {"any": 1}) for name in peft_config.REFUSED),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("peft_type", "IA3"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(scope, name, value):
    with pytest.raises(LoraError, match=name):
        read_alphas({METADATA: json.dumps({scope + name: value})})


@pytest.mark.parametrize(
    "pattern",
    ["(a", "(a+)+", "((a+))+", "(a*){2,}", "a*a*a*a*", "x" * 600, "[", r"(?P<a", r"(\\*\\)*x"],
)
def test_a_pattern_that_is_none_or_could_take_forever(pattern):
    with pytest.raises(LoraError, match="alpha_pattern"):
        matches(pattern, "down_blocks.0." + "a" * 60)


@pytest.mark.parametrize("alpha", [10**400, float("nan"), float("inf"), "8", None, True])
def test_an_alpha_that_is_no_number(alpha):
    with pytest.raises(LoraError, match="alpha"):
        read_alphas({METADATA: json.dumps({"lora_alpha": alpha})}).scale("mid_block.attn.to_q", 4)


def test_a_pattern_matches_from_a_dot_to_the_end():
    assert matches("to_q", "mid_block.attn.to_q")
    assert matches("to_q", "to_q")
    assert not matches("to_q", "mid_block.attn.auto_q")
    assert not matches("attn", "mid_block.attn.to_q")
    assert matches(r"blocks\.\d\.to_[qk]", "down_blocks.1.to_k") is False
    assert matches(r"down_blocks\.\d\.to_[qk]", "down_blocks.1.to_k")


def test_a_folder_has_one_lora(tmp_path):
    folder = tmp_path / "style"
    folder.mkdir()
    with pytest.raises(LoraError, match=re.escape(f"{folder}: got no safetensors file")):
        find_lora(folder)
    for name in ("b.safetensors", "a.safetensors"):
        save_file({"x": np.zeros(1)}, folder / name)
    with pytest.raises(LoraError, match=r"a\.safetensors', 'b\.safetensors'.*name the file"):
        find_lora(folder)
    save_file({"x": np.zeros(1)}, folder / "pytorch_lora_weights.safetensors")
    assert find_lora(folder).name == "pytorch_lora_weights.safetensors"
    assert lora_name(folder) == "style"
    assert lora_name(folder / "a.safetensors") == "a"


@pytest.mark.parametrize("text", ["", "[]", "{", "\ud800", "[" * 100_000])
def test_a_config_that_is_none(tmp_path, text):
    name = "base_model.model.down_blocks.0.to_q.lora_A.weight"
    save_file({name: np.zeros((1, 1))}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(LoraError, match=r"adapter_config\.json"):
        read_lora(tmp_path)
