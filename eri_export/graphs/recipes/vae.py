"""The VAE's decoder and encoder (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

from diffusers import AutoencoderKL
from torch import Tensor

from eri_export.checkpoints import Component
from eri_export.graphs.recipes.base import Recipe, Wrapper, float_input, float_output, uniform
from eri_export.graphs.recipes.sizes import (
    Frame,
    image_ranges,
    image_sizes,
    latent_ranges,
    latent_sizes,
)
from eri_runtime.bundle import LatentSpec, Precision


class Decoder(Wrapper):
    """Decodes unscaled latents to an image in about [-1, 1]."""

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) float32 -> (B, 3, fh, fw) float32."""
        z = latents.to(self.dtype)
        if self.network.post_quant_conv is not None:
            z = self.network.post_quant_conv(z)
        image: Tensor = self.network.decoder(z)
        return image.float()


class Encoder(Wrapper):
    """Encodes an image in [-1, 1] to the mean and log-variance of its latents."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, fh, fw) float32 -> two of (B, C, h, w) float32; `logvar` in [-30, 20]."""
        moments = self.network.encoder(image.to(self.dtype))
        if self.network.quant_conv is not None:
            moments = self.network.quant_conv(moments)
        mean, logvar = moments.float().chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)


def decoder_recipe(
    source: Component, precision: Precision, frame: Frame, latents: LatentSpec
) -> Recipe:
    """Returns the recipe of the VAE's decoder."""
    sizes = latent_sizes(frame)
    return Recipe(
        name="vae_decoder",
        source=source,
        precision=precision,
        make=lambda source: AutoencoderKL.from_config(dict(source.config)),
        wrap=Decoder,
        inputs=(float_input("latents", "batch", latents.channels, "height", "width"),),
        outputs=(float_output("image", "batch", 3, "image_height", "image_width"),),
        ranges={"batch": frame.images, **latent_ranges(frame)},
        examples=sizes,
    )


def encoder_recipe(
    source: Component, precision: Precision, frame: Frame, latents: LatentSpec
) -> Recipe:
    """Returns the recipe of the VAE's encoder."""
    sizes = image_sizes(frame, latents.factor)
    shape = ("batch", latents.channels, "height", "width")
    pixels = ("batch", 3, "image_height", "image_width")
    return Recipe(
        name="vae_encoder",
        source=source,
        precision=precision,
        make=lambda source: AutoencoderKL.from_config(dict(source.config)),
        wrap=Encoder,
        inputs=(float_input("image", *pixels, draw=uniform(-1, 1)),),
        outputs=(float_output("mean", *shape), float_output("logvar", *shape)),
        ranges={"batch": frame.images, **image_ranges(frame, latents.factor)},
        examples=sizes,
    )
