"""Embeds all captions with the shipped text encoders, which SDXL and Flux share, frozen."""

from __future__ import annotations

import dataclasses
import pathlib

import torch

from eri_export.embedded import emoji_data, train_tokenizers
from eri_export.embedded.denoiser import Denoiser, TokenIds, shipped_denoiser
from eri_export.embedded.train_denoiser import caption_ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionEmbeddings:
    """Text conditions of all captions, one row per caption; the last row is the empty caption."""

    clip: torch.Tensor  # (captions, 16, 160), penultimate hidden states of both towers
    clip_l_pooled: torch.Tensor  # (captions, 64), hidden state at the end of text
    clip_g_pooled: torch.Tensor  # (captions, 96), the same, projected
    t5: torch.Tensor  # (captions, 16, 192)
    owners: torch.Tensor  # (captions - 1,), index of each caption's drawing

    @property
    def empty(self) -> int:
        """The row of the empty caption."""
        return len(self.owners)


@torch.no_grad()
def embedded_captions(folder: pathlib.Path) -> CaptionEmbeddings:
    """Embeds all captions with the text encoders of a checkpoint folder, in float32."""
    tokenizers = train_tokenizers.build_tokenizers()
    denoiser = shipped_denoiser(folder, tokenizers)
    ids, owners = caption_ids(tokenizers, emoji_data.chosen_names())
    denoiser.eval()
    return _embedded(denoiser, ids, owners)


def _embedded(denoiser: Denoiser, ids: TokenIds, owners: torch.Tensor) -> CaptionEmbeddings:
    """Runs the text encoders on the token ids."""
    towers = ((denoiser.clip_l, ids.clip_l), (denoiser.clip_g, ids.clip_g))
    first, second = (tower(tokens, output_hidden_states=True) for tower, tokens in towers)
    hidden = [output.hidden_states[-2] for output in (first, second)]
    return CaptionEmbeddings(
        clip=torch.cat(hidden, dim=-1),
        clip_l_pooled=_end_of_text(first.last_hidden_state, ids.clip_l),
        clip_g_pooled=second.text_embeds,
        t5=denoiser.t5(ids.t5).last_hidden_state,
        owners=owners,
    )


def _end_of_text(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Returns `CLIPTextModel`'s pooled output: the state of the first token with the highest id."""
    return hidden[torch.arange(len(ids)), ids.argmax(dim=-1)]
