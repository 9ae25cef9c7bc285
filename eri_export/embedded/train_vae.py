"""Trains the autoencoder on latents that are defined in advance.

The latents are the leading principal components of the drawings' 8x8 patches, so decoder, encoder
and denoiser can be trained independently: the decoder learns to invert noisy latents, and the
encoder learns to predict them.
"""

from __future__ import annotations

import pathlib
from typing import Any, cast

import torch
from diffusers import AutoencoderKL

from eri_export.embedded import models
from eri_export.embedded.models import LATENT_CHANNELS, SD3_SPACE, LatentSpace
from eri_export.embedded.training_loop import Run, train

RATE = 2e-3
BATCH = 4  # per worker
PATCH = 8
WHITENING = 0.25  # each component is scaled by its variance to the power of -WHITENING
NOISE = 0.08  # standard deviation of the noise added to latents of unit deviation
LOGVAR = -6.0  # target log-variance of the encoder's posterior


def patch_components(
    images: torch.Tensor, channels: int = models.LATENT_CHANNELS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns filters (C, 3, 8, 8) and offsets (C,) that give latents of unit deviation."""
    patches = torch.nn.functional.unfold(images, PATCH, stride=PATCH)  # (N, 192, L)
    rows = patches.transpose(1, 2).reshape(-1, patches.shape[1]).double()
    mean = rows.mean(dim=0)
    variances, vectors = torch.linalg.eigh(torch.cov(rows.T))
    leading = range(len(variances) - 1, len(variances) - 1 - channels, -1)
    basis = vectors[:, list(leading)].T
    basis = basis * basis.sum(dim=1, keepdim=True).sign()  # eigh does not fix the signs
    basis = basis * variances[list(leading), None] ** -WHITENING
    basis = basis / ((rows - mean) @ basis.T).std()
    filters = basis.reshape(-1, 3, PATCH, PATCH)
    return filters.float(), (-basis @ mean).float()


def target_latents(images: torch.Tensor, channels: int = models.LATENT_CHANNELS) -> torch.Tensor:
    """Returns the images' latents (N, C, H/8, W/8), with zero mean and unit deviation."""
    filters, offsets = patch_components(images, channels)
    return torch.nn.functional.conv2d(images, filters, offsets, stride=PATCH)


def scaled_latents(latents: torch.Tensor, vae: AutoencoderKL) -> torch.Tensor:
    """Scales latents for encoder and decoder, unless the quant convolutions do that."""
    if vae.config.use_quant_conv:
        return latents
    shift: float = vae.config.shift_factor or 0.0
    scale: float = vae.config.scaling_factor
    return latents / scale + shift


@torch.no_grad()
def narrowed(wide: AutoencoderKL, images: torch.Tensor, space: LatentSpace) -> AutoencoderKL:
    """Reduces the 16-channel autoencoder to its leading channels.

    The leading components are the same up to a factor, so the encoder needs no training. The
    decoder starts as if the removed components had their mean, 0.
    """
    vae, kept = models.build_vae(space), space.channels
    factor = patch_components(images, kept)[0].std() / patch_components(images)[0][:kept].std()
    gain, shift = factor * SD3_SPACE.scale, SD3_SPACE.shift
    decoder, encoder = wide.decoder.state_dict(), wide.encoder.state_dict()
    first, last = decoder["conv_in.weight"], encoder["conv_out.weight"]
    decoder["conv_in.weight"] = first[:, :kept] / gain
    decoder["conv_in.bias"] += shift * first.sum(dim=(1, 2, 3))
    mean, spread = slice(0, kept), slice(LATENT_CHANNELS, LATENT_CHANNELS + kept)
    encoder["conv_out.weight"] = torch.cat([last[mean] * gain, last[spread]])
    bias = encoder["conv_out.bias"]
    bias = torch.cat([(bias[mean] - shift) * gain, bias[spread] + 2 * gain.log()])
    encoder["conv_out.bias"] = bias
    vae.decoder.load_state_dict(decoder)
    vae.encoder.load_state_dict(encoder)
    return vae


def train_decoder(
    work: pathlib.Path,
    images: torch.Tensor,
    *,
    minutes: float,
    start: AutoencoderKL | None = None,
) -> None:
    """Fits the decoder to invert the latents: L1, squared error and image gradients."""
    torch.manual_seed(0)
    vae = start or models.build_vae()
    clean = target_latents(images, vae.config.latent_channels)
    run = Run(work / "decoder.pt", vae.decoder, lr=RATE, seed=0)

    def loss_function(
        decoder: torch.nn.Module, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        index = torch.randperm(len(images), generator=generator)[:BATCH]
        noise = torch.randn(clean[index].shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            output = decoder(scaled_latents(clean[index] + NOISE * noise, vae)).float()
        return reconstruction_losses(output, images[index])

    train(run, loss_function, minutes=minutes)


def train_encoder(work: pathlib.Path, images: torch.Tensor, *, minutes: float) -> None:
    """Fits the encoder to predict the latents and a constant log-variance."""
    torch.manual_seed(1)
    vae = models.build_vae()
    latents = scaled_latents(target_latents(images), vae)
    run = Run(work / "encoder.pt", vae.encoder, lr=RATE, seed=1)

    def loss_function(
        encoder: torch.nn.Module, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        index = torch.randperm(len(images), generator=generator)[:BATCH]
        with torch.autocast("cpu", torch.bfloat16):
            mean, logvar = encoder(images[index]).float().chunk(2, dim=1)
        error = (mean - latents[index]).square().mean()
        return {"loss": error + 0.01 * (logvar - LOGVAR).square().mean(), "error": error}

    train(run, loss_function, minutes=minutes)


def reconstruction_losses(output: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns L1 + squared error + L1 of the image gradients, and the first two alone."""
    error = output - target
    l1, mse = error.abs().mean(), error.square().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return {"loss": l1 + mse + 0.25 * edges, "l1": l1, "mse": mse}


def trained_vae(work: pathlib.Path, start: AutoencoderKL | None = None) -> AutoencoderKL:
    """Returns the moving averages of the runs in `work`; parts without a run stay as in `start`."""
    torch.manual_seed(0)
    vae = start or models.build_vae()
    for name in ("encoder", "decoder"):
        path = work / f"{name}.pt"
        if path.is_file():
            part = cast(torch.nn.Module, getattr(vae, name))
            part.load_state_dict(cast(Any, torch.load(path, weights_only=True)["ema"]))
    return vae.eval()
