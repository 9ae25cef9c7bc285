"""Train a LoRA that paints the embedded checkpoint's emoji in blue ink, on pictures of its own.

    python -m eri_export.embedded.style_lora --work DIR

The checkpoint draws every emoji it knows, the drawings become shades of one blue, and the denoiser
learns them by low-rank updates (Hu et al. 2021, arXiv 2106.09685). Nothing is downloaded. Killed at
any moment, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig, get_peft_model_state_dict

from eri_export.embedded import LORAS, checkpoint, data, denoiser_stage, models, text
from eri_export.embedded.loop import Run, train

TARGET = pathlib.Path(__file__).with_name("loras") / LORAS["blue-ink"]
MINUTES = 7.0
BATCH = 8  # of each worker
RATE = 2e-3
RANK = 12
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_out")
INK, PAPER = (0.0, 0.1, 0.55), (1.0, 1.0, 1.0)  # of black and of white
CONTRAST = 1.7  # the exponent of lightness: pale drawings get more ink
LUMA = (0.299, 0.587, 0.114)  # BT.601
STEPS, GUIDANCE, SEED, AT_ONCE = 20, 4.0, 1000, 16

Images = npt.NDArray[np.float32]


def main() -> None:
    """Draw, recolour, learn, save."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description="Train the blue ink LoRA.")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="where the run is kept")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="training time, in all")
    parser.add_argument("-o", "--output", type=pathlib.Path, default=TARGET)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    train_lora(arguments.work, arguments.output, minutes=arguments.minutes)


def train_lora(work: pathlib.Path, output: pathlib.Path, *, minutes: float) -> None:
    """Fit low-rank updates by flow matching to recoloured drawings, and write their average."""
    pipe = StableDiffusion3Pipeline.from_pretrained(checkpoint(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    names = data.chosen_names()
    latents = encoded(pipe, in_blue_ink(drawn(pipe, [data.captions(name)[0] for name in names])))
    captions = [(caption, i) for i, name in enumerate(names) for caption in text.variants(name)]
    owners = torch.tensor([owner for _, owner in captions])
    embeds, pooled = embedded_texts(pipe, [*(caption for caption, _ in captions), ""])
    run = Run(work / "blue-ink.pt", adapted(pipe.transformer), lr=RATE, seed=3)

    def loss_function(
        model: torch.nn.Module, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        rows = torch.randint(len(owners), (BATCH,), generator=generator)
        x, s, target = denoiser_stage.noised(latents[owners[rows]], generator)
        rows = denoiser_stage.dropped(rows, len(owners), generator)
        velocity = model(x, embeds[rows], pooled[rows], 1000 * s, return_dict=False)[0]
        return {"loss": (velocity - target).square().mean()}

    train(run, loss_function, minutes=minutes)
    save(run.ema, output)


def in_blue_ink(images: Images) -> Images:
    """Pictures (N, H, W, 3) in [0, 1] in shades from `INK` to `PAPER`."""
    shade = ((images @ np.array(LUMA, np.float32)) ** CONTRAST)[..., None]
    ink, paper = np.array(INK, np.float32), np.array(PAPER, np.float32)
    return ink + (paper - ink) * shade


def drawn(pipe: StableDiffusion3Pipeline, prompts: list[str]) -> Images:
    """One picture a prompt, (N, H, W, 3) in [0, 1], each of a seed of its own."""
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
def encoded(pipe: StableDiffusion3Pipeline, images: Images) -> torch.Tensor:
    """Pictures in [0, 1] as the denoiser's latents."""
    pixels = torch.from_numpy(2 * images.transpose(0, 3, 1, 2) - 1).contiguous()
    parts = [pipe.vae.encode(part).latent_dist.mean for part in pixels.split(AT_ONCE)]
    return (torch.cat(parts) - models.SD3_SPACE.shift) * models.SD3_SPACE.scale


@torch.no_grad()
def embedded_texts(
    pipe: StableDiffusion3Pipeline, texts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt (N, 32, 192) and pooled (N, 160) embeddings."""
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


def adapted(transformer: models.SD3Transformer2DModel) -> models.SD3Transformer2DModel:
    """The denoiser with low-rank updates, of which alone it learns."""
    torch.manual_seed(3)
    transformer.requires_grad_(False)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LAYERS))
    transformer.add_adapter(config)
    return transformer


def save(transformer: Any, path: pathlib.Path) -> None:
    """Write the updates as diffusers does, in fp16, with peft's configuration as metadata."""
    layers = {
        name: value.to(torch.float16).contiguous()
        for name, value in get_peft_model_state_dict(transformer).items()
    }
    config = transformer.peft_config["default"].to_dict()
    config["target_modules"] = sorted(LAYERS)  # of a set, which no two processes write alike
    path.parent.mkdir(parents=True, exist_ok=True)
    StableDiffusion3Pipeline.save_lora_weights(
        path.parent,
        transformer_lora_layers=layers,
        weight_name=path.name,
        transformer_lora_adapter_metadata=config,
    )


if __name__ == "__main__":
    main()
