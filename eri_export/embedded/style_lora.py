"""Trains a LoRA that draws emoji in blue ink, on images that the embedded checkpoint generates.

    python -m eri_export.embedded.style_lora --work DIR

The checkpoint draws every emoji it knows, the images are recoloured in shades of one blue, and the
denoiser learns them with low-rank updates (Hu et al. 2021, arXiv 2106.09685). Nothing is
downloaded. If the command is killed, running it again resumes the training.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig, get_peft_model_state_dict

from eri_export.embedded import (
    LORAS,
    checkpoint,
    emoji_data,
    models,
    train_denoiser,
    train_tokenizers,
)
from eri_export.embedded.training_loop import Run, train

TARGET = pathlib.Path(__file__).with_name("loras") / LORAS["blue-ink"]
MINUTES = 7.0
BATCH = 8  # per worker
RATE = 2e-3
RANK = 12
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_out")
INK, PAPER = (0.0, 0.1, 0.55), (1.0, 1.0, 1.0)  # what black and white become
CONTRAST = 1.7  # exponent of the lightness: pale drawings get more ink
LUMA = (0.299, 0.587, 0.114)  # BT.601
STEPS, GUIDANCE, SEED, AT_ONCE = 20, 4.0, 1000, 16

Images = npt.NDArray[np.float32]


def main() -> None:
    """Runs the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description="Train the blue ink LoRA.")
    parser.add_argument(
        "--work", type=pathlib.Path, required=True, help="folder of the run's state"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="total training time")
    parser.add_argument("-o", "--output", type=pathlib.Path, default=TARGET)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    train_lora(arguments.work, arguments.output, minutes=arguments.minutes)


def train_lora(work: pathlib.Path, output: pathlib.Path, *, minutes: float) -> None:
    """Fits low-rank updates to recoloured drawings by flow matching, and writes their average."""
    pipe = StableDiffusion3Pipeline.from_pretrained(checkpoint(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    names = emoji_data.chosen_names()
    drawings = draw(pipe, [emoji_data.captions(name)[0] for name in names])
    latents = encode(pipe, in_blue_ink(drawings))
    captions = [
        (caption, i) for i, name in enumerate(names) for caption in train_tokenizers.variants(name)
    ]
    owners = torch.tensor([owner for _, owner in captions])
    embeds, pooled = embed_texts(pipe, [*(caption for caption, _ in captions), ""])
    run = Run(work / "blue-ink.pt", add_adapter(pipe.transformer), lr=RATE, seed=3)

    def loss_function(
        model: torch.nn.Module, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        rows = torch.randint(len(owners), (BATCH,), generator=generator)
        x, s, target = train_denoiser.noised(latents[owners[rows]], generator)
        rows = train_denoiser.dropped(rows, len(owners), generator)
        velocity = model(x, embeds[rows], pooled[rows], 1000 * s, return_dict=False)[0]
        return {"loss": (velocity - target).square().mean()}

    train(run, loss_function, minutes=minutes)
    save(run.ema, output)


def in_blue_ink(images: Images) -> Images:
    """Recolours images (N, H, W, 3) in [0, 1] in shades from `INK` to `PAPER`."""
    shade = ((images @ np.array(LUMA, np.float32)) ** CONTRAST)[..., None]
    ink, paper = np.array(INK, np.float32), np.array(PAPER, np.float32)
    return ink + (paper - ink) * shade


def draw(pipe: StableDiffusion3Pipeline, prompts: list[str]) -> Images:
    """Draws one image per prompt, (N, H, W, 3) in [0, 1], each with its own seed."""
    images = []
    for begin in range(0, len(prompts), AT_ONCE):
        part = prompts[begin : begin + AT_ONCE]
        seeds = range(SEED + begin, SEED + begin + len(part))
        result = pipe(
            part,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            height=models.IMAGE_SIZE,
            width=models.IMAGE_SIZE,
            max_sequence_length=models.MAX_TOKENS,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        )
        images.append(result.images)
    return np.concatenate(images).astype(np.float32)


@torch.no_grad()
def encode(pipe: StableDiffusion3Pipeline, images: Images) -> torch.Tensor:
    """Encodes images in [0, 1] to latents in the denoiser's scale."""
    pixels = torch.from_numpy(2 * images.transpose(0, 3, 1, 2) - 1).contiguous()
    parts = [pipe.vae.encode(part).latent_dist.mean for part in torch.split(pixels, AT_ONCE)]
    return (torch.cat(parts) - models.SD3_SPACE.shift) * models.SD3_SPACE.scale


@torch.no_grad()
def embed_texts(
    pipe: StableDiffusion3Pipeline, texts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns prompt (N, 32, 192) and pooled (N, 160) embeddings."""
    parts = [texts[begin : begin + 128] for begin in range(0, len(texts), 128)]
    pairs = [
        pipe.encode_prompt(
            part,
            None,
            None,
            do_classifier_free_guidance=False,
            max_sequence_length=models.MAX_TOKENS,
        )
        for part in parts
    ]
    return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[2] for pair in pairs])


def add_adapter(transformer: SD3Transformer2DModel) -> SD3Transformer2DModel:
    """Adds low-rank updates to the denoiser and freezes everything else."""
    torch.manual_seed(3)
    transformer.requires_grad_(False)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LAYERS))
    transformer.add_adapter(config)
    return transformer


def save(transformer: Any, path: pathlib.Path) -> None:
    """Writes the updates in diffusers' format, in fp16, with peft's configuration as metadata."""
    layers = {
        name: value.to(torch.float16).contiguous()
        for name, value in get_peft_model_state_dict(transformer).items()
    }
    config = transformer.peft_config["default"].to_dict()
    config["target_modules"] = sorted(
        LAYERS
    )  # peft keeps a set, whose order differs between processes
    path.parent.mkdir(parents=True, exist_ok=True)
    StableDiffusion3Pipeline.save_lora_weights(
        path.parent,
        transformer_lora_layers=layers,
        weight_name=path.name,
        transformer_lora_adapter_metadata=config,
    )


if __name__ == "__main__":
    main()
