"""Tiny checkpoints with random weights and real tokenizers, saved as diffusers folders.

Every network is the family's own class with every kind of block it has, only small; weights are
scaled so that an output depends on the text, the time and the latents alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

CAPTIONS = (
    "a red heart on a blue ground",
    "a photograph of a small green house under a yellow sun",
    "two black cats and one white dog, low quality, blurry",
    "an orange circle left of a purple square",
    "the same picture, drawn again with more light and less noise",
)
WIDTH = 32  # of every text encoder


def tiny_sdxl(root: Path, prediction_type: str = "epsilon") -> Path:
    """Save an SDXL pipeline: UNet, VAE that wants float32, two CLIPs."""
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        use_linear_projection=True,
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    first, second = clip_tokenizer(16, "<|endoftext|>"), clip_tokenizer(16, "!")
    pipeline = StableDiffusionXLPipeline(
        unet=randomised(unet, 0),
        vae=_vae(blocks=2, channels=4, scale=0.13025, shift=None, force_upcast=True),
        text_encoder=randomised(CLIPTextModel(_clip_config(first)), 2),
        text_encoder_2=randomised(CLIPTextModelWithProjection(_legacy_config(second)), 3),
        tokenizer=first,
        tokenizer_2=second,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction_type,
            timestep_spacing="leading",
            steps_offset=1,
            rescale_betas_zero_snr=prediction_type == "v_prediction",
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    return _saved(pipeline, root)


def tiny_sd35(root: Path) -> Path:
    """Save a Stable Diffusion 3.5 pipeline: MMDiT with dual attention, two CLIPs, T5."""
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=24,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    first, second = clip_tokenizer(16, "<|endoftext|>"), clip_tokenizer(16, "!")
    pipeline = StableDiffusion3Pipeline(
        transformer=randomised(transformer, 10),
        vae=_vae(blocks=3, channels=16, scale=1.5305, shift=0.0609),
        text_encoder=randomised(CLIPTextModelWithProjection(_legacy_config(first)), 12),
        text_encoder_2=randomised(CLIPTextModelWithProjection(_clip_config(second)), 13),
        text_encoder_3=randomised(T5EncoderModel(_t5_config(2 * WIDTH)), 14),
        tokenizer=first,
        tokenizer_2=second,
        tokenizer_3=t5_tokenizer(24),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return _saved(pipeline, root)


def tiny_flux(root: Path, guidance_embeds: bool = True) -> Path:
    """Save a Flux pipeline: double and single stream blocks, CLIP, T5."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=guidance_embeds,
    )
    tokenizer = clip_tokenizer(16, "<|endoftext|>")
    pipeline = FluxPipeline(
        transformer=randomised(transformer, 20),
        vae=_vae(blocks=2, channels=16, scale=0.3611, shift=0.1159),
        text_encoder=randomised(CLIPTextModel(_clip_config(tokenizer)), 22),
        text_encoder_2=randomised(T5EncoderModel(_t5_config(2 * WIDTH)), 23),
        tokenizer=tokenizer,
        tokenizer_2=t5_tokenizer(32),
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
    )
    return _saved(pipeline, root)


def clip_tokenizer(max_length: int, pad_token: str) -> CLIPTokenizer:
    """A byte-level BPE like CLIP's, lower-casing, trained on `CAPTIONS`."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet.remove("!")
    alphabet.insert(0, "!")  # CLIP's own token 0, which SDXL's second encoder pads with
    trainer = trainers.BpeTrainer(
        vocab_size=700, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(CAPTIONS, trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens += ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=max_length
    )


def t5_tokenizer(max_length: int) -> T5Tokenizer:
    """A unigram tokenizer like T5's, trained on `CAPTIONS`."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",  # noqa: S106
        show_progress=False,
    )
    trained.train_from_iterator(CAPTIONS, trainer)
    vocab = [(token, score) for token, score in json.loads(trained.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=max_length)


def _saved(pipeline: DiffusionPipeline, root: Path) -> Path:
    pipeline.save_pretrained(root, safe_serialization=True)
    return root


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """Weights of unit gain, scales near 1, biases near 0, so that no input is drowned."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if id(parameter) in embeddings:
            value = 0.5 * noise
        elif parameter.ndim > 1:
            value = noise * (parameter.numel() / parameter.shape[0]) ** -0.5
        else:
            value = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        parameter.data.copy_(value)
    return module.eval()


def _vae(
    *, blocks: int, channels: int, scale: float, shift: float | None, force_upcast: bool = False
) -> nn.Module:
    vae = AutoencoderKL(
        block_out_channels=(16, *[32] * (blocks - 1)),
        down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=channels,
        scaling_factor=scale,
        shift_factor=shift,
        force_upcast=force_upcast,
        use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
        sample_size=32,
    )
    return randomised(vae, 100 + channels)


def _clip_config(tokenizer: CLIPTokenizer, eos_token_id: int | None = None) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if eos_token_id is None else eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="quick_gelu",
    )


def _legacy_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """Published CLIP configs still say 2, which transformers reads as `the highest id`."""
    return _clip_config(tokenizer, eos_token_id=2)


def _t5_config(width: int) -> T5Config:
    return T5Config(
        vocab_size=128,
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        pad_token_id=0,
        eos_token_id=1,
    )


def all_files(root: Path) -> Iterable[Path]:
    """Every regular file below `root`, in a fixed order."""
    return sorted(path for path in root.rglob("*") if path.is_file())
