"""Configurations and builders of the embedded checkpoint's components."""

from __future__ import annotations

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

IMAGE_SIZE = 96
LATENT_CHANNELS = 16
LATENT_SIZE = IMAGE_SIZE // 8
SCALING_FACTOR, SHIFT_FACTOR = 1.5305, 0.0609  # as SD3: unit deviation = (z - shift) * scale
MAX_TOKENS = 16
SHIFT = 1.5
CLIP_WIDTHS = (64, 96)
T5_WIDTH = 192


def build_vae() -> AutoencoderKL:
    """An SD3 autoencoder: factor 8, 16 channels, no quant convolutions."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        sample_size=IMAGE_SIZE,
        scaling_factor=SCALING_FACTOR,
        shift_factor=SHIFT_FACTOR,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def build_transformer() -> SD3Transformer2DModel:
    """An MMDiT as in SD3.5-medium: RMS-normed queries and keys, dual attention at the front."""
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


def build_clip(
    width: int, activation: str, *, vocab_size: int, bos: int, eos: int, pad: int
) -> CLIPTextModelWithProjection:
    """A CLIP text tower that pools the first end-of-text token."""
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
    """A T5 v1.1 encoder with gated GELU."""
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
    """The flow-matching Euler scheduler with SD3's static shift."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)
