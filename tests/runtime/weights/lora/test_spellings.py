"""Names that are another spelling of diffusers': the merged weights are the same to the bit."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.support.loras import (
    KOHYA,
    base_weights,
    dotted,
    kohya,
    low_rank,
    modules,
    normal,
    ours,
    touched,
)

# OneTrainer's OMI format: the names of the published checkpoints, with one module for each part
# of a fused layer. Flux and SD3 as in its `modules/util/convert/lora/convert_*_lora.py`
FLUX = {
    "x_embedder": "img_in.proj",
    "context_embedder": "txt_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
    **{
        f"time_text_embed.{ours}.linear_{i}": f"{theirs}_in.{end}_layer"
        for ours, theirs in (
            ("timestep_embedder", "time"),
            ("text_embedder", "vector"),
            ("guidance_embedder", "guidance"),
        )
        for i, end in ((1, "in"), (2, "out"))
    },
}
FLUX_BLOCKS = {
    r"^transformer_blocks\.(\d+)\.": {
        "attn.to_q": "img_attn.qkv.0",
        "attn.to_k": "img_attn.qkv.1",
        "attn.to_v": "img_attn.qkv.2",
        "attn.add_q_proj": "txt_attn.qkv.0",
        "attn.add_k_proj": "txt_attn.qkv.1",
        "attn.add_v_proj": "txt_attn.qkv.2",
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "norm1.linear": "img_mod.lin",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
        "norm1_context.linear": "txt_mod.lin",
    },
    r"^single_transformer_blocks\.(\d+)\.": {
        "attn.to_q": "linear1.0",
        "attn.to_k": "linear1.1",
        "attn.to_v": "linear1.2",
        "proj_mlp": "linear1.3",
        "proj_out": "linear2",
        "norm.linear": "modulation.lin",
    },
}
SD3_BLOCK = {
    "attn.to_q": "x_block.attn.qkv.0",
    "attn.to_k": "x_block.attn.qkv.1",
    "attn.to_v": "x_block.attn.qkv.2",
    "attn.add_q_proj": "context_block.attn.qkv.0",
    "attn.add_k_proj": "context_block.attn.qkv.1",
    "attn.add_v_proj": "context_block.attn.qkv.2",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "attn2.to_q": "x_block.attn2.qkv.0",
    "attn2.to_k": "x_block.attn2.qkv.1",
    "attn2.to_v": "x_block.attn2.qkv.2",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
SDXL = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "mid_block.resnets.0.conv1": "middle_block.0.in_layers.2",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (
        "middle_block.1.transformer_blocks.0.attn1.to_q"
    ),
    "conv_out": "out.2",
}


def omi_names(family, module):
    """A module's name in OMI, or None if OMI has none."""
    if family == "sdxl":
        return f"unet.{SDXL[module]}" if module in SDXL else None
    outer = FLUX if family == "flux" else {}
    if module in outer:
        return f"transformer.{outer[module]}"
    blocks = FLUX_BLOCKS if family == "flux" else {r"^transformer_blocks\.(\d+)\.": SD3_BLOCK}
    for pattern, table in blocks.items():
        match = re.match(pattern, module)
        if match and module[match.end() :] in table:
            published = {"flux": "double_blocks", "sd35": "joint_blocks"}[family]
            stem = "single_blocks" if "single" in pattern else published
            return f"transformer.{stem}.{match[1]}.{table[module[match.end() :]]}"
    return None


@pytest.mark.parametrize(("family", "least"), [("sdxl", 6), ("sd35", 27), ("flux", 30)])
def test_omi_names_of_a_denoiser(request, family, least):
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    names = modules(base_weights(checkpoint)["denoiser"])
    shapes = {name: shape for name, shape in names.items() if omi_names(family, name)}
    assert len(shapes) >= least
    by_diffusers = low_rank(shapes, dotted(""), KOHYA, alpha=2)
    by_omi = low_rank(shapes, lambda name: omi_names(family, name), KOHYA, alpha=2)
    if family == "flux":  # the published layer has its halves the other way round
        key = f"{omi_names('flux', 'norm_out.linear')}.lora_up.weight"
        by_omi[key] = np.roll(by_omi[key], len(by_omi[key]) // 2, axis=0)
    expected = ours(checkpoint, family, by_diffusers)
    found = ours(checkpoint, family, by_omi)
    assert touched(found, checkpoint)["denoiser"] == {f"{name}.weight" for name in shapes}
    for name, value in expected["denoiser"].items():
        assert np.array_equal(found["denoiser"][name], value), name


BLOCK = "transformer_blocks.0"
COMPILED = {
    "a whole model": ("transformer.", "transformer._orig_mod."),
    "a model without a prefix": ("transformer.", "_orig_mod."),
    "peft's": ("transformer.", "base_model.model._orig_mod."),
    "peft compiled": ("transformer.", "_orig_mod.base_model.model."),
    "each block": (f"transformer.{BLOCK}.", f"transformer.{BLOCK}._orig_mod."),
    "kohya's": ("lora_unet_", "lora_unet__orig_mod_"),
    "kohya's block": (
        "lora_transformer_transformer_blocks_0_",
        "lora_transformer_transformer_blocks_0__orig_mod_",
    ),
}


@pytest.mark.parametrize("case", COMPILED)
def test_a_model_that_torch_compiled(flux_checkpoint, case):
    plain, compiled = COMPILED[case]
    shapes = modules(base_weights(flux_checkpoint)["denoiser"], "attn.to_q", "ff.net.2")
    shapes = {name: shape for name, shape in shapes.items() if name.startswith(BLOCK)}
    naming = kohya if plain.startswith("lora_") else dotted
    prefix = plain.removesuffix(f"{BLOCK}.").removesuffix(naming("")(f"{BLOCK}."))
    lora = low_rank(shapes, naming(prefix), KOHYA, alpha=2)
    renamed = {key.replace(plain, compiled, 1): value for key, value in lora.items()}
    assert all("_orig_mod" in key for key in renamed)
    expected, found = (ours(flux_checkpoint, "flux", each)["denoiser"] for each in (lora, renamed))
    assert len(touched({"denoiser": found}, flux_checkpoint)["denoiser"]) == 2
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


MAGNITUDES = (
    ".dora_scale",
    ".dora_scale.weight",
    ".lora_magnitude_vector",
    ".lora_magnitude_vector.weight",
    ".lora_magnitude_vector.default",
    ".lora_magnitude_vector.default.weight",
)


@pytest.mark.parametrize("ending", MAGNITUDES)
def test_every_name_of_doras_magnitudes(sdxl_checkpoint, ending):
    """W' = m · (W + ΔW) / ‖W + ΔW‖, with the norm of each row."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    base = base_weights(sdxl_checkpoint)["denoiser"][f"{name}.weight"]
    lora = low_rank({name: base.shape}, dotted("unet."))
    lengths = np.abs(normal(np.random.default_rng(1), len(base))) + 1
    key = f"unet.{name}"
    lora[key + ending] = lengths.reshape(-1, 1) if "dora_scale" in ending else lengths
    total = base + lora[f"{key}.lora_B.weight"] @ lora[f"{key}.lora_A.weight"]
    expected = lengths[:, None] * total / np.linalg.norm(total, axis=1, keepdims=True)
    found = ours(sdxl_checkpoint, "sdxl", lora)["denoiser"][f"{name}.weight"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
