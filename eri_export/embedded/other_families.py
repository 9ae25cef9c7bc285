"""Trains and writes the SDXL and Flux checkpoints.

Both use the frozen text encoders of the sd35 checkpoint, which is trained first.
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

from eri_export.embedded import (
    checkpoint,
    models,
    train_flux,
    train_tokenizers,
    train_unet,
    train_vae,
    write_checkpoint,
)
from eri_export.embedded.assemble import SHARED


def pack_sdxl(work: pathlib.Path, images: torch.Tensor, target: pathlib.Path) -> None:
    """Replaces the folder `target` with the moving averages of the runs in `work`."""
    write_checkpoint.replace(
        target, lambda folder: _write_own("sdxl", sdxl_pipeline(work, images), folder)
    )


def pack_flux(work: pathlib.Path, target: pathlib.Path) -> None:
    """Replaces the folder `target` with the moving average of the run in `work`."""
    write_checkpoint.replace(target, lambda folder: _write_own("flux", flux_pipeline(work), folder))


def train_sdxl_decoder(work: pathlib.Path, images: torch.Tensor, *, minutes: float) -> None:
    """Trains the 16-channel decoder on 4 channels."""
    train_vae.train_decoder(work, images, minutes=minutes, start=_narrow_vae(images))


def sdxl_pipeline(work: pathlib.Path, images: torch.Tensor) -> StableDiffusionXLPipeline:
    """Returns the moving averages of the runs as one float32 pipeline."""
    tokenizers, source = train_tokenizers.build_tokenizers(), checkpoint("sd35")
    return StableDiffusionXLPipeline(
        unet=train_unet.trained(work),
        scheduler=models.build_sdxl_scheduler(),
        vae=train_vae.trained_vae(work, _narrow_vae(images)),
        text_encoder=CLIPTextModel.from_pretrained(source / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(source / "text_encoder_2"),
        tokenizer=tokenizers.clip_l,
        tokenizer_2=tokenizers.clip_g,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def flux_pipeline(work: pathlib.Path) -> FluxPipeline:
    """Returns the moving average of the run as one float32 pipeline."""
    tokenizers, source = train_tokenizers.build_tokenizers(), checkpoint("sd35")
    return FluxPipeline(
        transformer=train_flux.trained(work),
        scheduler=models.build_flux_scheduler(),
        vae=_shipped_vae(),
        text_encoder=CLIPTextModel.from_pretrained(source / "text_encoder"),
        text_encoder_2=T5EncoderModel.from_pretrained(source / "text_encoder_3"),
        tokenizer=tokenizers.clip_l,
        tokenizer_2=tokenizers.t5,
    )


def _write_own(family: str, pipeline: DiffusionPipeline, folder: pathlib.Path) -> None:
    """Saves a pipeline without the components that it shares with sd35."""
    pipeline.to(torch.float16).save_pretrained(folder)
    for name in SHARED[family]:
        shutil.rmtree(folder / name)
    if family == "flux":
        write_checkpoint.name_t5(folder, "tokenizer_2")


def _narrow_vae(images: torch.Tensor) -> AutoencoderKL:
    """Returns the shipped autoencoder reduced to SDXL's 4 channels."""
    return train_vae.narrowed(_shipped_vae(), images, models.SDXL_SPACE)


def _shipped_vae() -> AutoencoderKL:
    """Loads the sd35 checkpoint's autoencoder."""
    return AutoencoderKL.from_pretrained(checkpoint("sd35") / "vae", torch_dtype=torch.float32)
