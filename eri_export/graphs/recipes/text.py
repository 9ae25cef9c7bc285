"""The text encoders: CLIP (Radford et al. 2021) and T5 (Raffel et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.t5.modeling_t5 import T5Block

from eri_export.checkpoints import Component
from eri_export.graphs.recipes.base import Input, Recipe, Wrapper, float_output, text_ids
from eri_export.graphs.recipes.sizes import IMAGES, short_texts, token_sizes
from eri_runtime.bundle import Precision, ShapeRange, TensorSpec

PENULTIMATE = -2  # SDXL and SD3 take the input of CLIP's last layer


class _Clip(Wrapper):
    def encode(self, input_ids: Tensor) -> Any:
        """Runs the network with explicit positions, as its buffer of them has no values here."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        return self.network(input_ids, position_ids=positions, output_hidden_states=True)


class ClipHidden(_Clip):
    """SDXL's first encoder: token ids to the penultimate layer."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D) float32."""
        hidden: Tensor = self.encode(input_ids).hidden_states[PENULTIMATE]
        return hidden.float()


class ClipHiddenPooled(_Clip):
    """SDXL's second and SD3's encoders: the penultimate layer and the projected pooled state."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) int64 -> (B, T, D), (B, P) float32."""
        output = self.encode(input_ids)
        return output.hidden_states[PENULTIMATE].float(), output.text_embeds.float()


class ClipPooled(_Clip):
    """Flux's CLIP: only the pooled state, unprojected."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) int64 -> (B, D) float32."""
        pooled: Tensor = self.encode(input_ids).pooler_output
        return pooled.float()


class T5(Wrapper):
    """T5's encoder without a mask, as diffusers runs it."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D) float32."""
        hidden: Tensor = self.network(input_ids, return_dict=False)[0]
        return hidden.float()


def clip_recipe(
    source: Component,
    precision: Precision,
    wrap: type[_Clip],
    max_length: int,
    images: ShapeRange = IMAGES,
) -> Recipe:
    """Returns the recipe of a CLIP text encoder; its token count is fixed, as in its training."""
    config = CLIPTextConfig.from_dict(dict(source.config))
    width, projected = config.hidden_size, config.projection_dim
    hidden = float_output("hidden_states", "batch", max_length, width)
    outputs: dict[type[_Clip], tuple[TensorSpec, ...]] = {
        ClipHidden: (hidden,),
        ClipHiddenPooled: (hidden, float_output("pooled", "batch", projected)),
        ClipPooled: (float_output("pooled", "batch", width),),
    }
    sizes = token_sizes()
    return Recipe(
        name=source.name,
        source=source,
        precision=precision,
        make=_clip,
        wrap=wrap,
        inputs=(_ids("batch", max_length, vocabulary=config.vocab_size, end=_end_of_text(config)),),
        outputs=outputs[wrap],
        ranges={"batch": images},
        examples=sizes,
        repeated=(CLIPEncoderLayer,),
    )


def t5_recipe(
    source: Component, precision: Precision, tokens: ShapeRange, images: ShapeRange = IMAGES
) -> Recipe:
    """Returns the recipe of T5's encoder for prompts of `tokens`.

    With `wo` kept in float32, transformers runs the whole residual stream in float32.
    """
    config = T5Config.from_dict(dict(source.config))
    sizes = token_sizes(*short_texts(tokens.max))
    return Recipe(
        name=source.name,
        source=source,
        precision=precision,
        make=lambda source: T5EncoderModel(T5Config.from_dict(dict(source.config))),
        wrap=T5,
        inputs=(_ids("batch", "tokens", vocabulary=config.vocab_size, end=config.eos_token_id),),
        outputs=(float_output("hidden_states", "batch", "tokens", config.d_model),),
        ranges={"batch": images, "tokens": tokens},
        examples=sizes,
        repeated=(T5Block,),
    )


CLIPS: Mapping[str, Callable[[CLIPTextConfig], nn.Module]] = {
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
}


def _clip(source: Component) -> nn.Module:
    return CLIPS[source.class_name](CLIPTextConfig.from_dict(dict(source.config)))


def _end_of_text(config: CLIPTextConfig) -> int:
    """Returns the id that ends a prompt; 2 in published configs means the highest id."""
    end: int = config.eos_token_id
    return config.vocab_size - 1 if end == 2 else end


def _ids(*shape: int | str, vocabulary: int, end: int) -> Input:
    spec = TensorSpec(name="input_ids", dtype="int64", shape=shape)
    return Input(spec, text_ids(vocabulary, end))
