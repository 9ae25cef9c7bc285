"""LoRA files of every naming diffusers reads, merged as diffusers itself fuses them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from eri_runtime.bundle.safetensors_file import read_tensors
from tests.support.loras import (
    KOHYA,
    assert_same,
    base_weights,
    dotted,
    joined,
    kohya,
    low_rank,
    modules,
    normal,
    ours,
    theirs,
    touched,
)

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CLIP = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
T5 = (".q", ".k", ".v", ".o")


def wrapped(name):
    """CLIP's names as trainers know them."""
    return "text_model." + name.removeprefix("text_model.")


def texts(base, prefixes, name=dotted, alpha=None, ends=(".lora_A.weight", ".lora_B.weight")):
    """A LoRA of CLIPs, each with its prefix."""
    parts = []
    for seed, (component, prefix) in enumerate(prefixes.items()):
        shapes = {wrapped(key): shape for key, shape in modules(base[component], *CLIP).items()}
        parts.append(low_rank(shapes, name(prefix), ends, alpha=alpha, seed=10 + seed))
    return joined(*parts)


def sdxl_kohya(base):
    shapes = modules(base["denoiser"], *ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in")
    unet = low_rank(shapes, kohya("lora_unet_"), KOHYA, alpha=1.5)
    prefixes = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    return joined(unet, texts(base, prefixes, kohya, 1.5, KOHYA))


def sdxl_locon(base):
    shapes = modules(base["denoiser"], "conv1", "conv2", "conv_shortcut", "time_emb_proj", "0.conv")
    return low_rank(shapes, kohya("lora_unet_"), KOHYA, alpha=2)


def sdxl_peft(base):
    prefixes = {"text_encoder": "text_encoder.", "text_encoder_2": "text_encoder_2."}
    shapes = modules(base["denoiser"], *ATTENTION, "conv1", "conv_shortcut")
    return joined(low_rank(shapes, dotted("unet.")), texts(base, prefixes))


def processor(name):
    """An attention projection as diffusers named it before peft."""
    return "unet." + re.sub(r"\.(to_\w+?)(\.0)?$", r".processor.\1_lora", name)


OLD = (".down.weight", ".up.weight")


def sdxl_processors(base):
    attention = modules(base["text_encoder"], *CLIP[:4])
    text = {wrapped(key): shape for key, shape in attention.items()}
    return joined(
        low_rank(modules(base["denoiser"], *ATTENTION), processor, OLD),
        low_rank(
            text,
            lambda name: "text_encoder." + re.sub(r"(q|k|v|out)_proj$", r"to_\1_lora", name),
            OLD,
        ),
    )


def sdxl_linear_layers(base):
    text = {wrapped(key): shape for key, shape in modules(base["text_encoder_2"], *CLIP).items()}
    return joined(
        low_rank(modules(base["denoiser"], *ATTENTION), lambda name: f"unet.{name}.lora", OLD),
        low_rank(text, lambda name: f"text_encoder_2.{name}.lora_linear_layer", OLD),
    )


def sdxl_dora(base):
    shapes = modules(base["denoiser"], *ATTENTION, "conv1")
    made, rng = low_rank(shapes, dotted("unet.")), np.random.default_rng(5)
    for name, shape in shapes.items():
        length = np.abs(normal(rng, shape[0])) + 1
        if len(shape) == 4:
            length = length.reshape(1, -1, 1, 1)
        made[f"unet.{name}.lora_magnitude_vector"] = length
    return made


def sd35_peft(base):
    shapes = modules(base["denoiser"], *ATTENTION, "add_q_proj", "to_add_out", "ff.net.2")
    prefixes = {"text_encoder": "text_encoder.", "text_encoder_2": "text_encoder_2."}
    return joined(low_rank(shapes, dotted("transformer.")), texts(base, prefixes))


def flux_peft(base):
    shapes = modules(base["denoiser"], *ATTENTION, "proj_mlp", "proj_out", "norm.linear")
    return joined(
        low_rank(shapes, dotted("transformer.")), texts(base, {"text_encoder": "text_encoder."})
    )


def blocks(shape, *keys):
    """As many keys as the tiny Flux has double and single blocks, with the shape of each."""
    counts = {"double": 1, "single": 2}
    return {key.format(i): shape for key in keys for i in range(counts[key.split("_")[0]])}


def flux_shapes(base):
    """The modules of Flux as published: all but `linear1`, whose sizes diffusers fixes."""
    d = base["denoiser"]["x_embedder.weight"].shape[0]
    of_stream = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.0": (4, 1), "mlp.2": (1, 4)}
    shapes = {}
    for stream in ("img", "txt"):
        for name, (rows, columns) in (*of_stream.items(), ("mod.lin", (6, 1))):
            shapes |= blocks((rows * d, columns * d), f"double_blocks.{{}}.{stream}_{name}")
    return {
        **shapes,
        **blocks((d, 5 * d), "single_blocks.{}.linear2"),
        **blocks((3 * d, d), "single_blocks.{}.modulation.lin"),
    }


def flux_kohya(base):
    prefixes = {"text_encoder": "lora_te1_"}
    return joined(
        low_rank(flux_shapes(base), kohya("lora_unet_"), KOHYA, alpha=1.5),
        texts(base, prefixes, kohya, 1.5, KOHYA),
    )


def flux_comfy(base):
    return low_rank(flux_shapes(base), dotted("diffusion_model."), KOHYA, alpha=2)


def flux_onetrainer(base):
    shapes = modules(base["denoiser"], *ATTENTION, "add_k_proj", "to_add_out", "context_embedder")
    prefixes = {"text_encoder": "lora_te1_"}
    return joined(
        low_rank(shapes, kohya("lora_transformer_"), KOHYA, alpha=2),
        texts(base, prefixes, kohya, 2, KOHYA),
    )


def flux_xlabs(base):
    width = base["denoiser"]["x_embedder.weight"].shape[0]
    fused = ("double_blocks.{}.processor.qkv_lora1", "double_blocks.{}.processor.qkv_lora2")
    single = ("double_blocks.{}.processor.proj_lora1", "double_blocks.{}.processor.proj_lora2")
    shapes = {
        **blocks((3 * width, width), *fused, "single_blocks.{}.processor.qkv_lora"),
        **blocks((width, width), *single),
        **blocks((width, 5 * width), "single_blocks.{}.processor.proj_lora"),
    }
    return low_rank(shapes, dotted(""), (".down.weight", ".up.weight"))


FAMILIES = {
    "sdxl": (sdxl_kohya, sdxl_locon, sdxl_peft, sdxl_processors, sdxl_linear_layers, sdxl_dora),
    "sd35": (sd35_peft,),
    "flux": (flux_peft, flux_kohya, flux_comfy, flux_onetrainer, flux_xlabs),
}
EVERY = [
    pytest.param(family, make, id=make.__name__)
    for family, makers in FAMILIES.items()
    for make in makers
]


@pytest.mark.parametrize(("family", "make"), EVERY)
def test_a_file_is_merged_as_diffusers_fuses_it(request, tmp_path, family, make):
    checkpoint = request.getfixturevalue(f"{family}_checkpoint")
    lora = make(base_weights(checkpoint))
    merged = ours(checkpoint, family, lora, 0.7)
    expected = theirs(checkpoint, tmp_path, lora, 0.7)
    assert_same(merged, expected)
    changed = touched(merged, checkpoint)
    assert sum(map(len, changed.values())) >= len(lora) / 3
    assert changed == touched(expected_by_our_names(expected, merged), checkpoint)


def expected_by_our_names(expected, merged):
    """diffusers' weights under the names that the checkpoint's files have."""
    return {
        part: {
            name: expected[part].get(name, expected[part].get(name.removeprefix("text_model.")))
            for name in each
        }
        for part, each in merged.items()
    }


@pytest.mark.parametrize("rslora", [False, True])
def test_alphas_of_a_file_that_diffusers_saved(sdxl_checkpoint, tmp_path, rslora):
    """Trained with peft and saved by the pipeline, alphas are in the file's metadata alone."""
    unet = UNet2DConditionModel.from_pretrained(sdxl_checkpoint / "unet")
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_k", "conv1"],
        init_lora_weights=False,
        rank_pattern={"mid_block.resnets.0.conv1": 2},
        alpha_pattern={"mid_block.resnets.0.conv1": 3, "attn2.to_q": 1},
        use_rslora=rslora,
    )
    unet.add_adapter(config)
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(unet),
        **_collate_lora_metadata({"unet": unet}),
    )
    (file,) = tmp_path.glob("*.safetensors")
    lora = read_tensors(file)
    assert lora.metadata
    assert_same(
        ours(sdxl_checkpoint, "sdxl", lora, 1.3), theirs(sdxl_checkpoint, tmp_path, lora, 1.3)
    )
