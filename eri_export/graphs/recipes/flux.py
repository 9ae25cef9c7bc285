"""Flux's double and single stream transformer (Black Forest Labs 2024)."""

from __future__ import annotations

from contextlib import ExitStack

from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from eri_export.checkpoints import Component
from eri_export.graphs.recipes.base import (
    Recipe,
    Wrapper,
    float_input,
    float_output,
    patch_ids,
    uniform,
    zeros,
)
from eri_export.graphs.recipes.sizes import Frame, guided_batch, short_texts, token_sizes
from eri_runtime.bundle import Precision, ShapeRange

TIMESTEPS = 1000  # diffusers' Flux multiplies its timestep by this


class Flux(Wrapper):
    """The bundle's inputs and outputs around diffusers' Flux transformer."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Packed patches (B, S, 64) float32 -> the same; `timestep` (B,) in [0, 1000).

        Images with a `guidance` (B,) below 0 get no guidance embedding.
        """
        timestep = timestep * (1 / TIMESTEPS)  # torch and ONNX round `/ TIMESTEPS` differently
        scalars = [timestep * TIMESTEPS]
        if guidance is not None:
            scalars.append(guidance * TIMESTEPS)
        with ExitStack() as hooks:
            hooks.enter_context(self._float32_embedding(scalars))
            if guidance is not None:
                hooks.enter_context(self._optional_guidance(guidance))
            output: Tensor = self.network(
                hidden_states=sample.to(self.dtype),
                timestep=timestep,
                encoder_hidden_states=encoder_hidden_states.to(self.dtype),
                pooled_projections=pooled_projections.to(self.dtype),
                img_ids=img_ids,
                txt_ids=txt_ids,
                guidance=guidance,
                return_dict=False,
            )[0]
        return output.float()

    def _float32_embedding(self, scalars: list[Tensor]) -> RemovableHandle:
        """Passes timestep and guidance to their embedding in float32 while the handle is open.

        diffusers rounds them to the network's type first. Near 1000 a rounding step of float16
        turns the fastest sinusoid by half a radian.
        """
        embedding: nn.Module = self.network.get_submodule("time_text_embed")
        return embedding.register_forward_pre_hook(lambda _, inputs: (*scalars, inputs[-1]))

    def _optional_guidance(self, guidance: Tensor) -> RemovableHandle:
        """Drops the guidance embedding where `guidance` is below 0 while the handle is open.

        Trainers of a distilled Flux drop it, and no value of guidance has the same effect.
        """
        embedder: nn.Module = self.network.get_submodule("time_text_embed.guidance_embedder")
        present = (guidance >= 0)[:, None]
        return embedder.register_forward_hook(
            lambda _, _inputs, output: output * present.to(output.dtype)
        )


def flux_recipe(
    source: Component, precision: Precision, frame: Frame, tokens: ShapeRange
) -> Recipe:
    """Returns the recipe of a Flux transformer that reads `tokens` text tokens."""
    config = source.config
    channels = int(config["in_channels"])
    sizes = tuple(
        {**each, "patches": count}
        for each, count in zip(token_sizes(*short_texts(tokens.max)), (24, 35, 15), strict=True)
    )
    guidance = (float_input("guidance", "batch", draw=uniform(1, 8)),)
    return Recipe(
        name="denoiser",
        source=source,
        precision=precision,
        make=lambda source: FluxTransformer2DModel.from_config(dict(source.config)),
        wrap=Flux,
        inputs=(
            float_input("sample", "batch", "patches", channels),
            float_input("timestep", "batch", draw=uniform(0, 1000)),
            float_input(
                "encoder_hidden_states", "batch", "tokens", int(config["joint_attention_dim"])
            ),
            float_input("pooled_projections", "batch", int(config["pooled_projection_dim"])),
            float_input("img_ids", "patches", 3, draw=patch_ids),
            float_input("txt_ids", "tokens", 3, draw=zeros),
            *(guidance if config.get("guidance_embeds") else ()),
        ),
        outputs=(float_output("output", "batch", "patches", channels),),
        ranges={
            "batch": guided_batch(frame, 1),  # guidance is an input: one condition is enough
            "patches": frame.patches,
            "tokens": tokens,
        },
        examples=sizes,
        repeated=(FluxTransformerBlock, FluxSingleTransformerBlock),
    )
