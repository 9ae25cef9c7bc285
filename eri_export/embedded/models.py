"""Builds the components of the embedded checkpoints."""

from __future__ import annotations

import dataclasses
import math

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

IMAGE_SIZE = 96
LATENT_CHANNELS = 16
LATENT_SIZE = IMAGE_SIZE // 8
MAX_TOKENS = 16
SHIFT = 1.5
CLIP_WIDTHS = (64, 96)
T5_WIDTH = 192


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSpace:
    """An autoencoder's latent space: (z - shift) * scale has unit standard deviation."""

    channels: int
    scale: float
    shift: float
    quant_conv: bool


SD3_SPACE = LatentSpace(channels=LATENT_CHANNELS, scale=1.5305, shift=0.0609, quant_conv=False)
SDXL_SPACE = LatentSpace(channels=4, scale=0.13025, shift=0.0, quant_conv=True)


def build_vae(space: LatentSpace = SD3_SPACE) -> AutoencoderKL:
    """Builds an autoencoder of factor 8; its quant convolutions, if any, only scale."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=space.channels,
        sample_size=IMAGE_SIZE,
        scaling_factor=space.scale,
        shift_factor=space.shift or None,
        use_quant_conv=space.quant_conv,
        use_post_quant_conv=space.quant_conv,
        force_upcast=False,
    )
    if space.quant_conv:
        _scale_only(vae, space)
    return vae


def _scale_only(vae: AutoencoderKL, space: LatentSpace) -> None:
    """Makes the quant convolutions convert between unit standard deviation and `space`."""
    eye = torch.eye(space.channels)
    with torch.no_grad():
        scales = torch.cat([torch.full((space.channels,), 1 / space.scale), eye.sum(dim=0)])
        vae.quant_conv.weight.copy_(torch.diag(scales)[:, :, None, None])
        vae.quant_conv.bias.zero_()
        vae.quant_conv.bias[space.channels :] = -2 * math.log(space.scale)  # of the log-variance
        vae.post_quant_conv.weight.copy_(space.scale * eye[:, :, None, None])
        vae.post_quant_conv.bias.zero_()


def build_transformer() -> SD3Transformer2DModel:
    """Builds an MMDiT like SD3.5-medium's: RMS-normed queries and keys, dual attention first."""
    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=5,
        num_attention_heads=4,
        attention_head_dim=32,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=sum(CLIP_WIDTHS),
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def build_flux_transformer() -> FluxTransformer2DModel:
    """Builds a Flux transformer with guidance embedding, like FLUX.1-dev."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=32,
        num_attention_heads=3,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTHS[0],
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )


def build_unet() -> UNet2DConditionModel:
    """Builds a UNet in SDXL's layout: attention at the lower level only, both CLIPs, time ids."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=SDXL_SPACE.channels,
        out_channels=SDXL_SPACE.channels,
        block_out_channels=(48, 80),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(3, 5),  # the number of heads, as everywhere in SDXL
        norm_num_groups=16,
        use_linear_projection=True,
        cross_attention_dim=sum(CLIP_WIDTHS),
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=6 * 16 + CLIP_WIDTHS[1],
    )


def build_clip(
    width: int, activation: str, *, vocab_size: int, bos: int, eos: int, pad: int
) -> CLIPTextModelWithProjection:
    """Builds a CLIP text tower that pools the first end-of-text token."""
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=width // 32,
        max_position_embeddings=MAX_TOKENS,
        hidden_act=activation,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
        attn_implementation="sdpa",
    )
    return CLIPTextModelWithProjection(config)


def build_t5(*, vocab_size: int, eos: int, pad: int) -> T5EncoderModel:
    """Builds a T5 v1.1 encoder with gated GELU."""
    config = T5Config(
        vocab_size=vocab_size,
        d_model=T5_WIDTH,
        d_kv=32,
        num_heads=3,
        d_ff=T5_WIDTH,
        num_layers=2,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        eos_token_id=eos,
        pad_token_id=pad,
        tie_word_embeddings=False,
        use_cache=False,
        is_encoder_decoder=False,
    )
    return T5EncoderModel(config)


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Builds the flow-matching Euler scheduler with SD3's static shift."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)


def build_flux_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Builds FLUX.1-dev's scheduler: the shift depends on the image size, e^0.46 at 96x96."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def build_sdxl_scheduler() -> EulerDiscreteScheduler:
    """Builds SDXL's scheduler: Euler over the noise levels of Stable Diffusion's betas."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
    )
