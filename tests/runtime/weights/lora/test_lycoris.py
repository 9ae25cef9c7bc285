"""LoHa, LoKr and DoRA against peft's own merge; Tucker cores against the convolutions they are."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from peft.utils import get_peft_model_state_dict
from torch.nn import functional

from tests.support.loras import (
    KOHYA,
    as_numpy,
    assert_same,
    base_weights,
    dotted,
    kohya,
    low_rank,
    modules,
    normal,
    ours,
    touched,
)

TARGETS = ["to_q", "to_out.0", "ff.net.2", "conv1", "conv_shortcut", "time_emb_proj"]
CONFIGS = {
    "loha": LoHaConfig(r=3, alpha=3, target_modules=TARGETS, init_weights=False),
    "loha_cores": LoHaConfig(
        r=3, alpha=3, target_modules=TARGETS, init_weights=False, use_effective_conv2d=True
    ),
    "lokr": LoKrConfig(r=2, alpha=2, target_modules=TARGETS, init_weights=False),
    "lokr_both": LoKrConfig(
        r=2, alpha=2, target_modules=TARGETS, init_weights=False, decompose_both=True
    ),
    "lokr_cores": LoKrConfig(
        r=2, alpha=2, target_modules=TARGETS, init_weights=False, use_effective_conv2d=True
    ),
    "lokr_whole": LoKrConfig(r=64, alpha=64, target_modules=TARGETS, init_weights=False),
    "lora": LoraConfig(r=3, lora_alpha=3, target_modules=TARGETS, init_lora_weights=False),
    "dora": LoraConfig(
        r=3, lora_alpha=3, target_modules=TARGETS, init_lora_weights=False, use_dora=True
    ),
}
# peft's ends -> those of kohya and LyCORIS
ENDS = {
    ".lora_A.weight": ".lora_down.weight",
    ".lora_B.weight": ".lora_up.weight",
    ".lora_magnitude_vector": ".dora_scale",
}


@pytest.fixture(scope="module")
def trained(request, sdxl_checkpoint):
    """An adapter on the tiny UNet: its file by peft, and the weights that peft merges."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(sdxl_checkpoint / "unet")
    inject_adapter_in_model(CONFIGS[request.param], unet)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "magnitude" in name:
                parameter *= 1 + 0.3 * torch.randn_like(parameter)
    file = as_numpy(get_peft_model_state_dict(unet).items())
    for layer in unet.modules():
        if isinstance(layer, LycorisLayer | LoraLayer):
            layer.merge()
    names = {name.replace(".base_layer", ""): p for name, p in unet.state_dict().items()}
    return file, as_numpy((n, p) for n, p in names.items() if n in base_names(sdxl_checkpoint))


def base_names(checkpoint):
    return base_weights(checkpoint)["denoiser"].keys()


@pytest.mark.parametrize("trained", CONFIGS, indirect=True)
def test_in_pefts_names(sdxl_checkpoint, trained):
    file, expected = trained
    lora = {f"base_model.model.{key}": value for key, value in file.items()}
    merged = ours(sdxl_checkpoint, "sdxl", lora)
    assert_same({"denoiser": merged["denoiser"]}, {"denoiser": expected})
    assert len(touched(merged, sdxl_checkpoint)["denoiser"]) >= 20


@pytest.mark.parametrize("trained", CONFIGS, indirect=True)
def test_in_kohyas_names_with_alphas(sdxl_checkpoint, trained):
    """An alpha of two ranks is a scale of 2, and peft's own alpha here is one rank."""
    file, expected = trained
    merged = ours(sdxl_checkpoint, "sdxl", kohya_file(file), 0.5)
    assert_same({"denoiser": merged["denoiser"]}, {"denoiser": expected})


# what ends the factor whose first side is the rank
RANKED = (".lora_A.weight", ".hada_w1_b", ".lokr_w1_b", ".lokr_w2_b")


def kohya_file(file):
    """The same adapter as kohya and LyCORIS write it, with alphas of twice the rank."""
    lora = {}
    for key, value in file.items():
        module, end = re.fullmatch(r"(.+?)(\.lora_.+|\.hada_.+|\.lokr_.+)", key).groups()
        name = "lora_unet_" + module.replace(".", "_")
        if end == ".lora_magnitude_vector":
            value = value.reshape(-1, *(1 for _ in file[f"{module}.lora_A.weight"].shape[1:]))
        if end == ".lokr_w2" and f"{module}.lokr_w1" in file:
            value = 2 * value  # with both sides whole, alpha scales nothing
        lora[name + ENDS.get(end, end)] = value
        if end in RANKED:
            lora[f"{name}.alpha"] = np.array(2 * len(value), np.float16)
    return lora


def test_a_core_of_locon_is_three_convolutions(sdxl_checkpoint):
    """Down, core and up applied one after the other to a picture give what the merged one adds."""
    base = base_weights(sdxl_checkpoint)["denoiser"]
    shapes, rng = modules(base, "conv1", "conv2"), np.random.default_rng(0)
    lora = {}
    for module, (rows, columns, *_) in shapes.items():
        name = kohya("lora_unet_")(module)
        lora[f"{name}.lora_down.weight"] = normal(rng, 3, columns, 1, 1)
        lora[f"{name}.lora_mid.weight"] = normal(rng, 3, 3, 3, 3)
        lora[f"{name}.lora_up.weight"] = normal(rng, rows, 3, 1, 1)
        lora[f"{name}.alpha"] = np.array(1.5, np.float32)
    merged = ours(sdxl_checkpoint, "sdxl", lora)["denoiser"]
    for module, shape in shapes.items():
        x = torch.randn(1, shape[1], 6, 6, generator=torch.Generator().manual_seed(1))
        name = kohya("lora_unet_")(module)
        expected = x
        for part in ("down", "mid", "up"):
            expected = functional.conv2d(
                expected, torch.from_numpy(lora[f"{name}.lora_{part}.weight"])
            )
        change = merged[f"{module}.weight"] - base[f"{module}.weight"]
        found = functional.conv2d(x, torch.from_numpy(change))
        assert (found - 0.5 * expected).abs().max() <= 1e-5 * expected.abs().max(), module


def test_lengths_per_input(sdxl_checkpoint):
    """LyCORIS's other DoRA: the columns of the merged weight have the lengths that are stored."""
    base = base_weights(sdxl_checkpoint)["denoiser"]
    shapes, rng = modules(base, "to_q", "conv1"), np.random.default_rng(0)
    lora = low_rank(shapes, kohya("lora_unet_"), KOHYA)
    lengths = {module: np.abs(normal(rng, shape[1])) + 1 for module, shape in shapes.items()}
    for module, shape in shapes.items():
        ones = (1,) * (len(shape) - 2)
        key = kohya("lora_unet_")(module)
        lora[f"{key}.dora_scale"] = lengths[module].reshape(1, -1, *ones)
    merged = ours(sdxl_checkpoint, "sdxl", lora)["denoiser"]
    plain = {key: value for key, value in lora.items() if "dora" not in key}
    sums = ours(sdxl_checkpoint, "sdxl", plain)["denoiser"]
    for module, shape in shapes.items():
        columns, sum_columns = (
            torch.from_numpy(each[f"{module}.weight"]).transpose(0, 1).reshape(shape[1], -1)
            for each in (merged, sums)
        )
        assert np.allclose(columns.norm(dim=1), lengths[module], rtol=1e-5)
        angle = functional.cosine_similarity(columns, sum_columns)
        assert angle.min() > 1 - 1e-5


def test_differences_stored_whole(sdxl_checkpoint):
    """LyCORIS's full and norm modules, and biases."""
    base = base_weights(sdxl_checkpoint)["denoiser"]
    rng = np.random.default_rng(0)
    ends = {"conv1": (".diff", ".diff_b"), "norm1": (".w_norm", ".b_norm")}
    lora, expected = {}, {}
    for name in base:
        module, kind = name.rsplit(".", 1)
        if module.endswith(tuple(ends)):
            end = ends[module.rsplit(".", 1)[1]][kind == "bias"]
            change = normal(rng, *base[name].shape)
            lora[dotted("lora_unet_")(module).replace(".", "_") + end] = change
            expected[name] = base[name] + np.float32(-0.5) * change
    merged = ours(sdxl_checkpoint, "sdxl", lora, -0.5)["denoiser"]
    assert_same({"denoiser": merged}, {"denoiser": {**base, **expected}})
    assert len(expected) > 30


def test_lengths_of_a_fused_matrix_are_split_with_its_rows(flux_checkpoint):
    base = base_weights(flux_checkpoint)["denoiser"]
    width, rng = base["x_embedder.weight"].shape[0], np.random.default_rng(0)
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    lora = {
        f"{key}.lora_down.weight": normal(rng, 2, width),
        f"{key}.lora_up.weight": normal(rng, 3 * width, 2),
        f"{key}.dora_scale": np.abs(normal(rng, 3 * width, 1)) + 1,
    }
    merged = ours(flux_checkpoint, "flux", lora)["denoiser"]
    names = [f"transformer_blocks.0.attn.to_{each}.weight" for each in "qkv"]
    total = np.concatenate([base[name] for name in names])
    total = total + lora[f"{key}.lora_up.weight"] @ lora[f"{key}.lora_down.weight"]
    total *= lora[f"{key}.dora_scale"] / np.linalg.norm(total, axis=1, keepdims=True)
    found = np.concatenate([merged[name] for name in names])
    assert np.allclose(found, total, rtol=1e-5, atol=1e-6)


def test_products_of_a_fused_matrix_are_split_with_its_rows(flux_checkpoint):
    base = base_weights(flux_checkpoint)["denoiser"]
    d, rng = base["x_embedder.weight"].shape[0], np.random.default_rng(0)
    loha = [normal(rng, 7 * d, 2), normal(rng, 2, d), normal(rng, 7 * d, 2), normal(rng, 2, d)]
    ends = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    left, right = normal(rng, 7, 4), normal(rng, d, d // 4)
    lora = {
        **{f"single_blocks.0.linear1.{end}": value for end, value in zip(ends, loha, strict=True)},
        "single_blocks.1.linear1.lokr_w1": left,
        "single_blocks.1.linear1.lokr_w2": right,
    }
    merged = ours(flux_checkpoint, "flux", lora)["denoiser"]
    changes = ((loha[0] @ loha[1]) * (loha[2] @ loha[3]), np.kron(left, right))
    for i, change in enumerate(changes):
        block = f"single_transformer_blocks.{i}."
        names = [*(f"{block}attn.to_{each}.weight" for each in "qkv"), f"{block}proj_mlp.weight"]
        found = np.concatenate([merged[name] for name in names])
        assert np.allclose(
            found, np.concatenate([base[name] for name in names]) + change, 1e-5, 1e-5
        )
