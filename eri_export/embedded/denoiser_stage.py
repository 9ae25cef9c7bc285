"""Joint training of the MMDiT and the three text encoders by flow matching."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Sequence

import torch

from eri_export.embedded import data, models, pack, text, vae_stage, watch
from eri_export.embedded.denoiser import Denoiser, TokenIds
from eri_export.embedded.loop import After, Run, ignore, train

BATCH = 16  # of each worker
RATE = 1.2e-3
LOGIT_MEAN, LOGIT_DEVIATION = 0.2, 1.0
CAPTION_DROPOUT = 0.1


def train_denoiser(
    work: pathlib.Path, images: torch.Tensor, *, minutes: float, every: int = 0
) -> None:
    """Flow matching (`noised`); every so many steps, if not 0, pictures are drawn and logged."""
    torch.manual_seed(2)
    tokenizers = text.build_tokenizers()
    denoiser = Denoiser(tokenizers)
    run = Run(work / "denoiser.pt", denoiser, lr=RATE, seed=2)
    latents, names = vae_stage.target_latents(images), data.chosen_names()
    with contextlib.ExitStack() as resources:
        after: After = ignore
        if every:
            vae = vae_stage.trained_vae(work)
            bundle = watch.export_once(pack.assembled(denoiser, vae, tokenizers), work / "watch")
            after = resources.enter_context(watch.Watch(bundle, work / "watch", every=every))
        fit(run, latents, names, tokenizers, minutes=minutes, after=after)


def fit(
    run: Run,
    latents: torch.Tensor,
    names: Sequence[str],
    tokenizers: text.Tokenizers,
    *,
    minutes: float,
    batch: int = BATCH,
    after: After = ignore,
) -> None:
    """Train on one latent (N, 16, H/8, W/8) a name, by all of the captions of each."""
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
    """Rows of captions, some of them replaced by the empty one."""
    drop = torch.rand(len(rows), generator=generator) < CAPTION_DROPOUT
    return torch.where(drop, empty, rows)


def noised(
    clean: torch.Tensor,
    generator: torch.Generator,
    *,
    mean: float = LOGIT_MEAN,
    deviation: float = LOGIT_DEVIATION,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_s = (1 - s) x_0 + s n, s (B,) with a normal logit, and the velocity n - x_0."""
    noise = torch.randn(clean.shape, generator=generator)
    s = (deviation * torch.randn(len(clean), generator=generator) + mean).sigmoid()
    level = s.view(-1, *[1] * (clean.ndim - 1))
    return (1 - level) * clean + level * noise, s, noise - clean


def caption_ids(tokenizers: text.Tokenizers, names: Sequence[str]) -> tuple[TokenIds, torch.Tensor]:
    """Ids of every caption of `names` plus the empty one, and the name of each by its index."""
    captions = [(text_, i) for i, name in enumerate(names) for text_ in text.variants(name)]
    texts = [*(caption for caption, _ in captions), ""]
    ids = TokenIds(
        clip_l=_padded(tokenizers.clip_l, texts),
        clip_g=_padded(tokenizers.clip_g, texts),
        t5=_padded(tokenizers.t5, texts),
    )
    return ids, torch.tensor([owner for _, owner in captions])


def _padded(tokenizer: text.CLIPTokenizer | text.T5Tokenizer, texts: list[str]) -> torch.Tensor:
    return tokenizer(
        texts,
        padding="max_length",
        max_length=models.MAX_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).input_ids
