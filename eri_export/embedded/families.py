"""The SDXL and Flux checkpoints: what they learn, and how they are written.

Both are told by the text encoders of the sd35 one, which is trained before and stays as it is.
"""

from __future__ import annotations

import pathlib
import shutil

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FluxPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from eri_export.embedded import checkpoint, flux, models, pack, text, unet, vae_stage
from eri_export.embedded.assemble import SHARED


def pack_sdxl(work: pathlib.Path, images: torch.Tensor, target: pathlib.Path) -> None:
    """Replace the folder `target` by the state of the runs in `work`."""
    pack.replace(target, lambda folder: _write_own("sdxl", sdxl_pipeline(work, images), folder))


def pack_flux(work: pathlib.Path, target: pathlib.Path) -> None:
    """Replace the folder `target` by the state of the run in `work`."""
    pack.replace(target, lambda folder: _write_own("flux", flux_pipeline(work), folder))


def train_sdxl_decoder(work: pathlib.Path, images: torch.Tensor, *, minutes: float) -> None:
    """Teach the decoder of 16 channels to do with 4."""
    vae_stage.train_decoder(work, images, minutes=minutes, start=_narrow_vae(images))


def sdxl_pipeline(work: pathlib.Path, images: torch.Tensor) -> StableDiffusionXLPipeline:
    """The moving averages of the runs as one float32 pipeline."""
    tokenizers, source = text.build_tokenizers(), checkpoint("sd35")
    return StableDiffusionXLPipeline(
        unet=unet.trained(work),
        scheduler=models.build_sdxl_scheduler(),
        vae=vae_stage.trained_vae(work, _narrow_vae(images)),
        text_encoder=CLIPTextModel.from_pretrained(source / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(source / "text_encoder_2"),
        tokenizer=tokenizers.clip_l,
        tokenizer_2=tokenizers.clip_g,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def flux_pipeline(work: pathlib.Path) -> FluxPipeline:
    """The moving average of the run as one float32 pipeline."""
    tokenizers, source = text.build_tokenizers(), checkpoint("sd35")
    return FluxPipeline(
        transformer=flux.trained(work),
        scheduler=models.build_flux_scheduler(),
        vae=_shipped_vae(),
        text_encoder=CLIPTextModel.from_pretrained(source / "text_encoder"),
        text_encoder_2=T5EncoderModel.from_pretrained(source / "text_encoder_3"),
        tokenizer=tokenizers.clip_l,
        tokenizer_2=tokenizers.t5,
    )


def _write_own(family: str, pipeline: DiffusionPipeline, folder: pathlib.Path) -> None:
    pipeline.to(torch.float16).save_pretrained(folder)
    for name in SHARED[family]:
        shutil.rmtree(folder / name)
    if family == "flux":
        pack.name_t5(folder, "tokenizer_2")


def _narrow_vae(images: torch.Tensor) -> AutoencoderKL:
    return vae_stage.narrowed(_shipped_vae(), images, models.SDXL_SPACE)


def _shipped_vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(checkpoint("sd35") / "vae", torch_dtype=torch.float32)
