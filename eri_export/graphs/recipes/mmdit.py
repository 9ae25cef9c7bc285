"""Stable Diffusion 3.5's MMDiT (Esser et al. 2024, arXiv 2403.03206)."""

from __future__ import annotations

from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor

from eri_export.checkpoints import Component
from eri_export.graphs.recipes.base import Recipe, Wrapper, float_input, float_output, uniform
from eri_export.graphs.recipes.sizes import Frame, denoiser_ranges, latent_sizes, short_texts
from eri_runtime.bundle import Precision, ShapeRange


class MMDiT(Wrapper):
    """The bundle's inputs and outputs around diffusers' SD3 transformer."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
    ) -> Tensor:
        """(B, C, h, w) float32 -> the same; `timestep` (B,) in [0, 1000), kept in float32."""
        output: Tensor = self.network(
            hidden_states=sample.to(self.dtype),
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states.to(self.dtype),
            pooled_projections=pooled_projections.to(self.dtype),
            return_dict=False,
        )[0]
        return output.float()


def mmdit_recipe(
    source: Component, precision: Precision, frame: Frame, tokens: ShapeRange
) -> Recipe:
    """Returns the recipe of an MMDiT that reads `tokens` text tokens, of CLIP and T5 together."""
    config = source.config
    channels = int(config["in_channels"])
    sizes = latent_sizes(frame, short_texts(tokens.max))
    return Recipe(
        name="denoiser",
        source=source,
        precision=precision,
        make=lambda source: SD3Transformer2DModel.from_config(dict(source.config)),
        wrap=MMDiT,
        inputs=(
            float_input("sample", "batch", channels, "height", "width"),
            float_input("timestep", "batch", draw=uniform(0, 1000)),
            float_input(
                "encoder_hidden_states", "batch", "tokens", int(config["joint_attention_dim"])
            ),
            float_input("pooled_projections", "batch", int(config["pooled_projection_dim"])),
        ),
        outputs=(float_output("output", "batch", channels, "height", "width"),),
        ranges=denoiser_ranges(frame, tokens),
        examples=sizes,
        repeated=(JointTransformerBlock,),
    )
