"""Trains SDXL's UNet to predict the noise, conditioned on both CLIP towers and time ids."""

from __future__ import annotations

import pathlib

import torch
from diffusers import UNet2DConditionModel

from eri_export.embedded import models, train_vae
from eri_export.embedded.caption_embeddings import CaptionEmbeddings
from eri_export.embedded.train_denoiser import dropped
from eri_export.embedded.training_loop import WORKERS, Run, load_average, train

BATCH = 32  # over all workers
RATE = 1.2e-3
# original height and width, top and left of the crop, target height and width
TIME_IDS = (models.IMAGE_SIZE, models.IMAGE_SIZE, 0, 0, models.IMAGE_SIZE, models.IMAGE_SIZE)


def train_unet(
    work: pathlib.Path,
    images: torch.Tensor,
    captions: CaptionEmbeddings,
    *,
    minutes: float,
    workers: int = WORKERS,
) -> None:
    """Fits the noise at uniformly drawn timesteps, with some captions replaced by zeros."""
    torch.manual_seed(5)
    unet = models.build_unet()
    _zero_last(unet)
    run = Run(work / "unet.pt", unet, lr=RATE, seed=5, workers=workers)
    latents = train_vae.target_latents(images, models.SDXL_SPACE.channels)
    clip, pooled = text_conditions(captions)
    alphas = models.build_sdxl_scheduler().alphas_cumprod
    batch = BATCH // workers

    def loss_function(
        model: torch.nn.Module, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        rows = torch.randint(captions.empty, (batch,), generator=generator)
        x, step, noise = diffused(latents[captions.owners[rows]], alphas, generator)
        rows = dropped(rows, captions.empty, generator)
        added = {
            "text_embeds": pooled[rows],
            "time_ids": torch.tensor(TIME_IDS).expand(batch, -1),
        }
        output = model(x, step, clip[rows], added_cond_kwargs=added, return_dict=False)[0]
        return {"loss": (output - noise).square().mean()}

    train(run, loss_function, minutes=minutes)


def text_conditions(captions: CaptionEmbeddings) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns hidden states and pooled embeddings, zeros for the empty caption as in SDXL."""
    clip, pooled = captions.clip.clone(), captions.clip_g_pooled.clone()
    clip[captions.empty], pooled[captions.empty] = 0, 0
    return clip, pooled


def diffused(
    clean: torch.Tensor, alphas: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) n (arXiv:2006.11239), t (B,), and n."""
    noise = torch.randn(clean.shape, generator=generator)
    step = torch.randint(len(alphas), (len(clean),), generator=generator)
    alpha = alphas[step].view(-1, 1, 1, 1)
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, step, noise


def _zero_last(unet: torch.nn.Module) -> None:
    """Initializes the end of every residual branch, and the output, with zeros."""
    for name, parameter in unet.named_parameters():
        if ".conv2." in name or ".proj_out." in name or name.startswith("conv_out"):
            torch.nn.init.zeros_(parameter)


def trained(work: pathlib.Path) -> UNet2DConditionModel:
    """Returns the moving average of the run in `work`."""
    unet = models.build_unet()
    load_average(work / "unet.pt", unet)
    return unet.eval()
