"""Trains Flux by flow matching, conditioned on T5, CLIP-L and the guidance scale."""

from __future__ import annotations

import pathlib

import torch
from diffusers import FluxTransformer2DModel

from eri_export.embedded import models, train_vae
from eri_export.embedded.caption_embeddings import CaptionEmbeddings
from eri_export.embedded.denoiser import zero_modulation
from eri_export.embedded.train_denoiser import dropped, noised
from eri_export.embedded.training_loop import WORKERS, Run, load_average, train

BATCH = 32  # over all workers
RATE = 1.2e-3
LOGIT_MEAN, LOGIT_DEVIATION = 1.1, 1.2  # mostly high noise, where only the caption helps
GUIDANCE = (1.0, 6.0)  # range of the scales that the network learns
PATCHES = models.LATENT_SIZE // 2  # per side


def packed(latents: torch.Tensor) -> torch.Tensor:
    """Packs 2x2 latents as channels like FluxPipeline: (N, C, H, W) to (N, HW/4, 4C)."""
    return torch.nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpacked(patches: torch.Tensor) -> torch.Tensor:
    """Inverts `packed` for square images."""
    squares = patches.transpose(1, 2).reshape(len(patches), -1, PATCHES, PATCHES)
    return torch.nn.functional.pixel_shuffle(squares, 2)


def velocity(
    transformer: torch.nn.Module,
    captions: CaptionEmbeddings,
    x: torch.Tensor,
    s: torch.Tensor,
    rows: torch.Tensor,
    guidance: torch.Tensor,
) -> torch.Tensor:
    """Predicts the velocity at packed latents `x`, noise levels `s` (B,) and guidance (B,)."""
    ids = torch.zeros(PATCHES, PATCHES, 3)
    ids[..., 1] = torch.arange(PATCHES)[:, None]
    ids[..., 2] = torch.arange(PATCHES)
    output: torch.Tensor = transformer(
        hidden_states=x,
        encoder_hidden_states=captions.t5[rows],
        pooled_projections=captions.clip_l_pooled[rows],
        timestep=s,
        img_ids=ids.flatten(0, 1),
        txt_ids=torch.zeros(models.MAX_TOKENS, 3),
        guidance=guidance,
        return_dict=False,
    )[0]
    return output


def train_flux(
    work: pathlib.Path,
    images: torch.Tensor,
    captions: CaptionEmbeddings,
    *,
    minutes: float,
    workers: int = WORKERS,
) -> None:
    """Fits the guided velocity at uniformly drawn guidance scales, without a teacher.

    Guidance distillation (arXiv:2210.03142, stage one) fits v(x, caption, g) = u + g (c - u), where
    c and u are a trained network's velocities with and without the caption. Here both are known: c
    is n - x_0, as every caption has one drawing, and u is `unconditional`.
    """
    torch.manual_seed(4)
    transformer = models.build_flux_transformer()
    zero_modulation(transformer)
    run = Run(work / "flux.pt", transformer, lr=RATE, seed=4, workers=workers)
    latents = packed(train_vae.target_latents(images))
    batch = BATCH // workers

    def loss_function(
        model: torch.nn.Module, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        rows = torch.randint(captions.empty, (batch,), generator=generator)
        clean = latents[captions.owners[rows]]
        x, s, cond = noised(clean, generator, mean=LOGIT_MEAN, deviation=LOGIT_DEVIATION)
        uncond = unconditional(x, s, latents)
        rows = dropped(rows, captions.empty, generator)
        cond = torch.where((rows == captions.empty)[:, None, None], uncond, cond)
        low, high = GUIDANCE
        guidance = low + (high - low) * torch.rand(batch, generator=generator)
        target = uncond + guidance[:, None, None] * (cond - uncond)
        error = velocity(model, captions, x, s, rows, guidance) - target
        added = (target - cond).square().mean(dim=(1, 2))
        error = error.square().mean(dim=(1, 2))
        return {"loss": (error / (1 + added)).mean(), "error": error.mean()}

    train(run, loss_function, minutes=minutes)


def unconditional(x: torch.Tensor, s: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Returns the velocity (x - E[x_0 | x]) / s over all drawings, in closed form.

    E[x_0 | x] weights the drawings by their likelihood N(x; (1 - s) x_0, s^2) (arXiv:2206.00364,
    B.3).
    """
    level = s[:, None]
    flat, known = x.flatten(1), latents.flatten(1)
    squares = (1 - level) ** 2 * known.square().sum(dim=1) - 2 * (1 - level) * flat @ known.T
    mean = (-squares / (2 * level**2)).softmax(dim=1) @ known
    return ((flat - mean) / level).view_as(x)


def trained(work: pathlib.Path) -> FluxTransformer2DModel:
    """Returns the moving average of the run in `work`."""
    transformer = models.build_flux_transformer()
    load_average(work / "flux.pt", transformer)
    return transformer.eval()
