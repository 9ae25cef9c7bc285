"""SDXL's UNet (Podell et al. 2023, arXiv 2307.01952)."""

from __future__ import annotations

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor

from eri_export.checkpoint import Component
from eri_export.recipes.base import (
    Recipe,
    Wrapper,
    float_input,
    float_output,
    pixel_counts,
    uniform,
)
from eri_export.recipes.sizes import Frame, denoiser_ranges, latent_sizes
from eri_runtime.errors import CheckpointError
from eri_runtime.spec import Precision, ShapeRange


class UNet(Wrapper):
    """The contract's inputs and outputs around diffusers' UNet."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
    ) -> Tensor:
        """(B, C, h, w) float32 -> the same; `timestep` (B,) in training steps."""
        # text_embeds stay float32: the network joins them to float32 sinusoids and casts the
        # whole, and ONNX has no Concat of two types.
        output = self.network(
            sample.to(self.dtype),
            timestep,
            encoder_hidden_states.to(self.dtype),
            added_cond_kwargs={"text_embeds": text_embeds, "time_ids": time_ids},
            return_dict=False,
        )[0]
        return output.float()


def unet_recipe(
    source: Component, precision: Precision, frame: Frame, clip: int, tokens: ShapeRange
) -> Recipe:
    """The recipe of an SDXL UNet; `CheckpointError` for one that is conditioned on other things.

    `clip` is the length of one prompt, `tokens` what the UNet is to take.

    `time_cond_proj_dim` is a guidance embedding, which LCM-distilled UNets have.
    """
    config = source.config
    for key, expected in (("addition_embed_type", "text_time"), ("time_cond_proj_dim", None)):
        if config.get(key) != expected:
            raise CheckpointError(
                f"{source.origin}: {key}",
                got=config.get(key),
                expected=f"{expected or 'none'}, as SDXL's own UNet has",
            )
    channels = int(config["in_channels"])
    pooled = int(config["projection_class_embeddings_input_dim"])
    pooled -= 6 * int(config["addition_time_embed_dim"])
    width = int(config["cross_attention_dim"])
    sizes = latent_sizes(frame, (clip, clip, 2 * clip))
    return Recipe(
        name="denoiser",
        source=source,
        precision=precision,
        make=lambda source: UNet2DConditionModel.from_config(dict(source.config)),
        wrap=UNet,
        inputs=(
            float_input("sample", "batch", channels, "height", "width"),
            float_input("timestep", "batch", draw=uniform(0, 1000)),
            float_input("encoder_hidden_states", "batch", "tokens", width),
            float_input("text_embeds", "batch", pooled),
            float_input("time_ids", "batch", 6, draw=pixel_counts),
        ),
        outputs=(float_output("output", "batch", channels, "height", "width"),),
        ranges=denoiser_ranges(frame, tokens),
        examples=sizes,
        repeated=(BasicTransformerBlock,),
    )
