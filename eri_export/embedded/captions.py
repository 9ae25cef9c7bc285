"""Every caption's embeddings by the shipped text encoders, which other families share, frozen."""

from __future__ import annotations

import dataclasses
import pathlib

import torch

from eri_export.embedded import data, text
from eri_export.embedded.denoiser import Denoiser, TokenIds, shipped_denoiser
from eri_export.embedded.denoiser_stage import caption_ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionEmbeddings:
    """What denoisers are told, a row a caption; the last row is the empty caption."""

    clip: torch.Tensor  # (captions, 16, 160), the penultimate hidden states of both towers
    clip_l_pooled: torch.Tensor  # (captions, 64), the hidden state of the end of text
    clip_g_pooled: torch.Tensor  # (captions, 96), the same, projected
    t5: torch.Tensor  # (captions, 16, 192)
    owners: torch.Tensor  # (captions - 1,), the index of each caption's drawing

    @property
    def empty(self) -> int:
        """The row of the empty caption."""
        return len(self.owners)


@torch.no_grad()
def embedded_captions(folder: pathlib.Path) -> CaptionEmbeddings:
    """All captions by the text encoders of a checkpoint folder, in float32."""
    tokenizers = text.build_tokenizers()
    denoiser = shipped_denoiser(folder, tokenizers)
    ids, owners = caption_ids(tokenizers, data.chosen_names())
    denoiser.eval()
    return _embedded(denoiser, ids, owners)


def _embedded(denoiser: Denoiser, ids: TokenIds, owners: torch.Tensor) -> CaptionEmbeddings:
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
    """`CLIPTextModel`'s pooled output: the normed state of the first token of the highest id."""
    return hidden[torch.arange(len(ids)), ids.argmax(dim=-1)]
