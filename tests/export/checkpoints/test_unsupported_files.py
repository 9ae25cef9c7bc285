"""What looks like a checkpoint of these families and is none is refused by its name."""

from __future__ import annotations

import pytest

from eri_export import open_checkpoint
from eri_runtime.errors import CheckpointError, DamagedWeightsError, PickleError
from tests.support import single_files as made

LDM_UNET = {
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    "out.2.weight": (4, 320, 3, 3),
    "input_blocks.1.1.norm.weight": (320,),
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
}
SDXL_UNET = {**LDM_UNET, "label_emb.0.0.weight": (1280, 2816)}
BFL_FLUX = {
    "img_in.weight": (3072, 64),
    "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
    "final_layer.linear.weight": (64, 3072),
}
SD2 = {**LDM_UNET, "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024)}
CONTEXT = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
DIFFUSERS_UNET = {
    "conv_in.weight": (320, 4, 3, 3),
    "conv_out.weight": (4, 320, 3, 3),
    "down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3),
}
REFUSED = {
    "SD 1": (LDM_UNET, "Stable Diffusion 1.x"),
    "SD 1, whole": ({"cond_stage_model.transformer.x": (1,)}, "Stable Diffusion 1.x"),
    "SD 1, diffusers": ({**DIFFUSERS_UNET, CONTEXT: (320, 768)}, "Stable Diffusion 1.x"),
    "SD 2": (SD2, "Stable Diffusion 2.x"),
    "SD 2, whole": ({"cond_stage_model.model.ln_final.bias": (1,)}, "Stable Diffusion 2.x"),
    "refiner": ({**SDXL_UNET, "label_emb.0.0.weight": (1536, 2560)}, "SDXL refiner"),
    "refiner, whole": ({"conditioner.embedders.0.model.ln_final.bias": (1,)}, "SDXL refiner"),
    "inpainting": ({**SDXL_UNET, "input_blocks.0.0.weight": (320, 9, 3, 3)}, "inpainting UNet"),
    "pix2pix": ({**SDXL_UNET, "input_blocks.0.0.weight": (320, 8, 3, 3)}, "InstructPix2Pix"),
    "EDM": ({**SDXL_UNET, "edm_mean": (1, 4, 1, 1)}, "got no edm_std"),
    "EDM v": ({**SDXL_UNET, "edm_vpred.sigma_max": ()}, "got no edm_vpred.sigma_min"),
    "EDM other": ({**SDXL_UNET, "edm_x": ()}, "EDM's noise levels (by its 'edm_x')"),
    "Fill": ({**BFL_FLUX, "img_in.weight": (3072, 384)}, "Flux Fill"),
    "Depth": ({**BFL_FLUX, "img_in.weight": (3072, 128)}, "Flux Depth or Canny"),
    "wider": ({**BFL_FLUX, "img_in.weight": (3072, 65)}, "65 channels in, 64 out"),
    "Redux": ({"redux_up.weight": (12288, 1152)}, "Flux Redux"),
    "Chroma": ({**BFL_FLUX, "distilled_guidance_layer.in_proj.bias": (5120,)}, "Chroma"),
    "Flux.2": ({**BFL_FLUX, "single_stream_modulation.lin.weight": (1, 1)}, "Flux.2"),
    "scaled": ({**BFL_FLUX, "scaled_fp8": (2,)}, "'scaled_fp8': got no scales"),
    "scaled too": ({**BFL_FLUX, "x.scale_weight": ()}, "'x.scale_weight': got no weight beside it"),
    "nf4": ({**BFL_FLUX, "img_in.weight.absmax": (9,)}, "without the state that bitsandbytes"),
    "LoRA": ({"lora_unet_mid_block_x.lora_down.weight": (4, 4)}, "a LoRA"),
    "LoRA, PEFT": ({"transformer.x.to_q.lora_A.weight": (4, 4)}, "a LoRA"),
    "LoRA, x-labs": ({"double_blocks.0.processor.qkv_lora1.up.weight": (4, 4)}, "a LoRA"),
    "LoKr": ({"lycoris_x.lokr_w1": (4, 4)}, "a LoRA"),
    "ControlNet": ({"control_model.time_embed.0.weight": (4, 4)}, "a ControlNet"),
    "ControlNet 2": ({"controlnet_cond_embedding.conv_in.bias": (4,)}, "a ControlNet"),
    "VAE": ({"decoder.mid.block_1.norm1.weight": (4,)}, "0 denoisers, in a file that holds vae"),
    "two": ({**BFL_FLUX, **{made.LDM + key: of for key, of in BFL_FLUX.items()}}, "2 denoisers"),
    "many": ({f"x{i}": (1,) for i in range(10_001)}, "10001 tensors"),
    "nothing": ({}, "no tensors"),
    "Wan": ({made.LDM + "head.modulation": (4,)}, "'model.diffusion_model.head.modulation'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(tmp_path, case):
    header, words = REFUSED[case]
    file = made.sparse(tmp_path / "flux1-dev.safetensors", header)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(file)
    assert words in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("head", "error", "words"),
    [
        (b"GGUF\x01\0\0\0" + bytes(60), DamagedWeightsError, "a GGUF file of version 1"),
        (b"\x80\x02}q\x00" + bytes(60), PickleError, "pickled"),
        (b"PK\x03\x04" + bytes(60), PickleError, "zip archive"),
    ],
)
def test_other_formats_are_told_by_their_bytes(tmp_path, head, error, words):
    file = tmp_path / "model.safetensors"
    file.write_bytes(head)
    with pytest.raises(error, match=words):
        open_checkpoint(file)
