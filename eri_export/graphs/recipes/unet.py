"""SDXL's UNet (Podell et al. 2023, arXiv 2307.01952)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn.functional import interpolate

from eri_export.checkpoints import Component
from eri_export.graphs.recipes.base import (
    Recipe,
    Wrapper,
    float_input,
    float_output,
    pixel_counts,
    uniform,
)
from eri_export.graphs.recipes.sizes import Frame, denoiser_ranges, latent_sizes
from eri_runtime.bundle import Precision, ShapeRange
from eri_runtime.errors import CheckpointError

# diffusers tells an upsampler the size of the skip connection only for latents with a side that
# 2**num_upsamplers does not divide. It divides no side that a trace may have, so all are told.
UPSAMPLERS = 40
SCALE = 1000  # of an embedded guidance, in diffusers


class UNet(Wrapper):
    """The bundle's inputs and outputs around diffusers' UNet, for latents of any size."""

    def __init__(self, network: UNet2DConditionModel, dtype: torch.dtype) -> None:
        super().__init__(network, dtype)
        network.num_upsamplers = UPSAMPLERS
        for module in network.modules():
            if isinstance(module, Upsample2D):
                module.interpolate = False
                module.register_forward_pre_hook(_upsample)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """(B, C, h, w) float32 -> the same; `timestep` (B,) in training steps.

        Images with a `guidance` (B,) below 0 get no guidance embedding.
        """
        # text_embeds stay float32: the network concatenates them with float32 sinusoids before it
        # casts both, and ONNX has no Concat of two types.
        output: Tensor = self.network(
            sample.to(self.dtype),
            timestep,
            encoder_hidden_states.to(self.dtype),
            timestep_cond=None if guidance is None else self._embedding(guidance),
            added_cond_kwargs={"text_embeds": text_embeds, "time_ids": time_ids},
            return_dict=False,
        )[0]
        return output.float()

    def _embedding(self, guidance: Tensor) -> Tensor:
        """Returns sinusoids of g − 1, (B, D) float32, or zeros where g is below 0.

        They are added to those of the timestep (Luo et al. 2023, arXiv 2310.04378, section 4.2) by
        a matrix without a bias, so that zeros add nothing.
        """
        width = int(self.network.config["time_cond_proj_dim"])
        # (guidance - 1) * 1000 as the pipeline computes it, sines before cosines
        embedding: Tensor = get_timestep_embedding(
            (guidance - 1) * SCALE, width, flip_sin_to_cos=False, downscale_freq_shift=1
        )
        return embedding * (guidance >= 0)[:, None].to(embedding.dtype)


def _upsample(_module: nn.Module, inputs: tuple[Tensor, Sequence[int]]) -> tuple[Tensor, None]:
    """(B, C, h, w) -> (B, C, *size): repeats each pixel twice; an odd size has one less at the end.

    The same as diffusers' nearest interpolation to `size`, which reads pixel ⌊i·h/size⌋ = ⌊i/2⌋.
    """
    hidden, (height, width) = inputs
    return interpolate(hidden, scale_factor=2.0, mode="nearest")[..., :height, :width], None


def unet_recipe(
    source: Component, precision: Precision, frame: Frame, clip: int, tokens: ShapeRange
) -> Recipe:
    """Returns the recipe of an SDXL UNet.

    `clip` is the length of one prompt, `tokens` the text tokens that the UNet reads. A UNet
    distilled to a guidance embedding (LCM, `time_cond_proj_dim`) has an input `guidance`. Raises
    `CheckpointError` for a UNet with other conditions than SDXL's.
    """
    config = source.config
    if config.get("addition_embed_type") != "text_time":
        raise CheckpointError(
            f"{source.origin}: addition_embed_type",
            got=config.get("addition_embed_type"),
            expected="text_time, as SDXL's own UNet has",
        )
    guidance = (float_input("guidance", "batch", draw=uniform(1, 8)),)
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
            *(guidance if config.get("time_cond_proj_dim") else ()),
        ),
        outputs=(float_output("output", "batch", channels, "height", "width"),),
        ranges=denoiser_ranges(frame, tokens),
        examples=sizes,
        repeated=(BasicTransformerBlock,),
    )
