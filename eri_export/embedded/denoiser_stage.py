"""Joint training of the MMDiT and the three text encoders by flow matching."""

from __future__ import annotations

import dataclasses
import pathlib

import torch

from eri_export.embedded import data, models, text, vae_stage
from eri_export.embedded.loop import Run, train

BATCH = 16  # of each worker
LOGIT_MEAN, LOGIT_DEVIATION = 0.2, 1.0
CAPTION_DROPOUT = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Padded ids of all captions, each (captions, 16); the last row is the empty caption."""

    clip_l: torch.Tensor
    clip_g: torch.Tensor
    t5: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> TokenIds:
        return TokenIds(clip_l=self.clip_l[rows], clip_g=self.clip_g[rows], t5=self.t5[rows])


class Denoiser(torch.nn.Module):
    """The modules that learn together."""

    def __init__(self, tokenizers: text.Tokenizers) -> None:
        super().__init__()
        self.clip_l = _clip(tokenizers.clip_l, models.CLIP_WIDTHS[0], "quick_gelu")
        self.clip_g = _clip(tokenizers.clip_g, models.CLIP_WIDTHS[1], "gelu")
        self.t5 = models.build_t5(vocab_size=len(tokenizers.t5), eos=1, pad=0)
        self.transformer = models.build_transformer()
        _zero_modulation(self.transformer)

    def embed(self, ids: TokenIds) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt (B, 32, 192) and pooled (B, 160) embeddings, as StableDiffusion3Pipeline's."""
        towers = ((self.clip_l, ids.clip_l), (self.clip_g, ids.clip_g))
        clips = [tower(tokens, output_hidden_states=True) for tower, tokens in towers]
        pooled = torch.cat([output.text_embeds for output in clips], dim=-1)
        clip = torch.cat([output.hidden_states[-2] for output in clips], dim=-1)
        padded = torch.nn.functional.pad(clip, (0, models.T5_WIDTH - clip.shape[-1]))
        return torch.cat([padded, self.t5(ids.t5).last_hidden_state], dim=1), pooled

    def forward(self, latents: torch.Tensor, s: torch.Tensor, ids: TokenIds) -> torch.Tensor:
        """The velocity at `latents` and noise level `s` in [0, 1]."""
        prompt, pooled = self.embed(ids)
        return self.transformer(
            hidden_states=latents,
            timestep=1000 * s,
            encoder_hidden_states=prompt,
            pooled_projections=pooled,
            return_dict=False,
        )[0]


def train_denoiser(work: pathlib.Path, images: torch.Tensor, *, minutes: float) -> None:
    """Flow matching, x_s = (1 - s) x_0 + s n with target n - x_0, s logit-normal."""
    torch.manual_seed(2)
    latents = vae_stage.target_latents(images)
    tokenizers = text.build_tokenizers()
    ids, owners = caption_ids(tokenizers)
    run = Run(work / "denoiser.pt", Denoiser(tokenizers), lr=1.2e-3, seed=2)

    def loss_function(
        model: torch.nn.Module, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        rows = torch.randint(len(owners), (BATCH,), generator=generator)
        clean = latents[owners[rows]]
        dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROPOUT
        rows = torch.where(dropped, len(owners), rows)
        noise = torch.randn(clean.shape, generator=generator)
        logit = LOGIT_DEVIATION * torch.randn(BATCH, generator=generator) + LOGIT_MEAN
        s = logit.sigmoid()
        level = s[:, None, None, None]
        velocity = model((1 - level) * clean + level * noise, s, ids[rows])
        loss = (velocity - (noise - clean)).square().mean()
        return {"loss": loss}

    train(run, loss_function, minutes=minutes)


def caption_ids(tokenizers: text.Tokenizers) -> tuple[TokenIds, torch.Tensor]:
    """Ids of every caption plus the empty one, and the emoji that each caption names."""
    names = data.chosen_names()
    captions = [(text_, i) for i, name in enumerate(names) for text_ in text.variants(name)]
    texts = [*(caption for caption, _ in captions), ""]
    ids = TokenIds(
        clip_l=_padded(tokenizers.clip_l, texts),
        clip_g=_padded(tokenizers.clip_g, texts),
        t5=_padded(tokenizers.t5, texts),
    )
    return ids, torch.tensor([owner for _, owner in captions])


def trained_denoiser(path: pathlib.Path, tokenizers: text.Tokenizers) -> Denoiser:
    """The moving average of a run, or `ValueError` where there is none."""
    if not path.is_file():
        raise ValueError(f"{path}: no trained denoiser; run `--stage denoiser` first")
    denoiser = Denoiser(tokenizers)
    denoiser.load_state_dict(torch.load(path, weights_only=True)["ema"])
    return denoiser.eval()


def _clip(
    tokenizer: text.CLIPTokenizer, width: int, activation: str
) -> models.CLIPTextModelWithProjection:
    return models.build_clip(
        width,
        activation,
        vocab_size=len(tokenizer),
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
    )


def _padded(tokenizer: text.CLIPTokenizer | text.T5Tokenizer, texts: list[str]) -> torch.Tensor:
    return tokenizer(
        texts,
        padding="max_length",
        max_length=models.MAX_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def _zero_modulation(transformer: models.SD3Transformer2DModel) -> None:
    """Start every block as the identity (adaLN-Zero, arXiv:2212.09748)."""
    for name, parameter in transformer.named_parameters():
        if (".linear." in name and "norm" in name) or name.startswith("proj_out"):
            torch.nn.init.zeros_(parameter)
