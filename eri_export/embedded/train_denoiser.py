"""Trains the MMDiT and the three text encoders together by flow matching."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Sequence

import torch
from transformers import CLIPTokenizer, T5Tokenizer

from eri_export.embedded import (
    emoji_data,
    models,
    train_tokenizers,
    train_vae,
    training_pictures,
    write_checkpoint,
)
from eri_export.embedded.denoiser import Denoiser, TokenIds
from eri_export.embedded.training_loop import After, Run, ignore, train

BATCH = 16  # per worker
RATE = 1.2e-3
LOGIT_MEAN, LOGIT_DEVIATION = 0.2, 1.0
CAPTION_DROPOUT = 0.1


def train_denoiser(
    work: pathlib.Path, images: torch.Tensor, *, minutes: float, every: int = 0
) -> None:
    """Trains by flow matching (`noised`); draws and logs images every `every` steps, if not 0."""
    torch.manual_seed(2)
    tokenizers = train_tokenizers.build_tokenizers()
    denoiser = Denoiser(tokenizers)
    run = Run(work / "denoiser.pt", denoiser, lr=RATE, seed=2)
    latents, names = train_vae.target_latents(images), emoji_data.chosen_names()
    with contextlib.ExitStack() as resources:
        after: After = ignore
        if every:
            vae = train_vae.trained_vae(work)
            bundle = training_pictures.export_once(
                write_checkpoint.assembled(denoiser, vae, tokenizers), work / "watch"
            )
            after = resources.enter_context(
                training_pictures.Watch(bundle, work / "watch", every=every)
            )
        fit(run, latents, names, tokenizers, minutes=minutes, after=after)


def fit(
    run: Run,
    latents: torch.Tensor,
    names: Sequence[str],
    tokenizers: train_tokenizers.Tokenizers,
    *,
    minutes: float,
    batch: int = BATCH,
    after: After = ignore,
) -> None:
    """Trains on one latent per name, (N, 16, H/8, W/8), with all captions of each name."""
    ids, owners = caption_ids(tokenizers, names)

    def loss_function(
        model: torch.nn.Module, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        rows = torch.randint(len(owners), (batch,), generator=generator)
        clean = latents[owners[rows]]
        rows = dropped(rows, len(owners), generator)
        x, s, target = noised(clean, generator)
        return {"loss": (model(x, s, ids[rows]) - target).square().mean()}

    train(run, loss_function, minutes=minutes, after=after)


def dropped(rows: torch.Tensor, empty: int, generator: torch.Generator) -> torch.Tensor:
    """Replaces a random `CAPTION_DROPOUT` of the rows (B,) with the empty caption's row."""
    drop = torch.rand(len(rows), generator=generator) < CAPTION_DROPOUT
    return torch.where(drop, empty, rows)


def noised(
    clean: torch.Tensor,
    generator: torch.Generator,
    *,
    mean: float = LOGIT_MEAN,
    deviation: float = LOGIT_DEVIATION,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns x_s = (1 - s) x_0 + s n, the noise level s (B,), and the velocity n - x_0.

    s is logit-normal (Esser et al. 2024, arXiv:2403.03206).
    """
    noise = torch.randn(clean.shape, generator=generator)
    s = (deviation * torch.randn(len(clean), generator=generator) + mean).sigmoid()
    level = s.view(-1, *[1] * (clean.ndim - 1))
    return (1 - level) * clean + level * noise, s, noise - clean


def caption_ids(
    tokenizers: train_tokenizers.Tokenizers, names: Sequence[str]
) -> tuple[TokenIds, torch.Tensor]:
    """Returns the token ids of all captions and the empty one, and each caption's name index."""
    captions = [
        (caption, i) for i, name in enumerate(names) for caption in train_tokenizers.variants(name)
    ]
    texts = [*(caption for caption, _ in captions), ""]
    ids = TokenIds(
        clip_l=_padded(tokenizers.clip_l, texts),
        clip_g=_padded(tokenizers.clip_g, texts),
        t5=_padded(tokenizers.t5, texts),
    )
    return ids, torch.tensor([owner for _, owner in captions])


def _padded(tokenizer: CLIPTokenizer | T5Tokenizer, texts: list[str]) -> torch.Tensor:
    """Returns padded token ids, (texts, 16) int64."""
    ids: torch.Tensor = tokenizer(
        texts,
        padding="max_length",
        max_length=models.MAX_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids
