"""The modules that are trained together: the MMDiT and the three text encoders."""

from __future__ import annotations

import dataclasses
import pathlib

import torch
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from eri_export.embedded import models, train_tokenizers
from eri_export.embedded.training_loop import load_average

# attribute of `Denoiser` by component
TEXT_ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Padded token ids of all captions, (captions, 16) each; the last row is the empty caption."""

    clip_l: torch.Tensor
    clip_g: torch.Tensor
    t5: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> TokenIds:
        """Returns the ids of some captions."""
        return TokenIds(clip_l=self.clip_l[rows], clip_g=self.clip_g[rows], t5=self.t5[rows])


class Denoiser(torch.nn.Module):
    """The MMDiT and its text encoders as one module."""

    def __init__(self, tokenizers: train_tokenizers.Tokenizers) -> None:
        super().__init__()
        self.clip_l = _clip(tokenizers.clip_l, models.CLIP_WIDTHS[0], "quick_gelu")
        self.clip_g = _clip(tokenizers.clip_g, models.CLIP_WIDTHS[1], "gelu")
        self.t5 = models.build_t5(vocab_size=len(tokenizers.t5), eos=1, pad=0)
        self.transformer = models.build_transformer()
        zero_modulation(self.transformer)

    def embed(self, ids: TokenIds) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns prompt (B, 32, 192) and pooled (B, 160) embeddings, as diffusers does."""
        towers = ((self.clip_l, ids.clip_l), (self.clip_g, ids.clip_g))
        clips = [tower(tokens, output_hidden_states=True) for tower, tokens in towers]
        pooled = torch.cat([output.text_embeds for output in clips], dim=-1)
        clip = torch.cat([output.hidden_states[-2] for output in clips], dim=-1)
        padded = torch.nn.functional.pad(clip, (0, models.T5_WIDTH - clip.shape[-1]))
        return torch.cat([padded, self.t5(ids.t5).last_hidden_state], dim=1), pooled

    def forward(self, latents: torch.Tensor, s: torch.Tensor, ids: TokenIds) -> torch.Tensor:
        """Predicts the velocity of `latents` (B, 16, h, w) at noise level `s` (B,) in [0, 1]."""
        prompt, pooled = self.embed(ids)
        velocity: torch.Tensor = self.transformer(
            hidden_states=latents,
            timestep=1000 * s,
            encoder_hidden_states=prompt,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return velocity


def trained_denoiser(path: pathlib.Path, tokenizers: train_tokenizers.Tokenizers) -> Denoiser:
    """Returns the moving average of a run; raises ValueError if there is no such run."""
    denoiser = Denoiser(tokenizers)
    load_average(path, denoiser)
    return denoiser.eval()


def shipped_denoiser(folder: pathlib.Path, tokenizers: train_tokenizers.Tokenizers) -> Denoiser:
    """Loads the modules of a checkpoint folder in diffusers' layout, in float32."""
    denoiser = Denoiser(tokenizers)
    parts = {**TEXT_ENCODERS, "transformer": "transformer"}
    for component, attribute in parts.items():
        kind = type(getattr(denoiser, attribute))
        setattr(denoiser, attribute, kind.from_pretrained(folder / component, dtype=torch.float32))
    return denoiser


def weights_by_component(denoiser: Denoiser) -> dict[str, dict[str, torch.Tensor]]:
    """Returns the parameters of each module by the name of its component in a bundle.

    These are named parameters and not a state dict, which would list T5's tied embedding under two
    names; a weights file has one of them.
    """
    parts = {**TEXT_ENCODERS, "denoiser": "transformer"}
    return {
        component: {
            key: value.detach() for key, value in getattr(denoiser, name).named_parameters()
        }
        for component, name in parts.items()
    }


def _clip(tokenizer: CLIPTokenizer, width: int, activation: str) -> CLIPTextModelWithProjection:
    """Builds a CLIP tower for a tokenizer."""
    return models.build_clip(
        width,
        activation,
        vocab_size=len(tokenizer),
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
    )


def zero_modulation(transformer: torch.nn.Module) -> None:
    """Initializes every block as the identity (adaLN-Zero, arXiv:2212.09748)."""
    for name, parameter in transformer.named_parameters():
        if (".linear." in name and "norm" in name) or name.startswith("proj_out"):
            torch.nn.init.zeros_(parameter)
