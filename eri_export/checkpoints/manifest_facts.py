"""The manifest's schedule, latents and defaults, read from the checkpoint's configs."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from eri_export.checkpoints.checkpoint import Checkpoint
from eri_export.checkpoints.scheduler_facts import own_sampling, settings_of
from eri_export.checkpoints.training_schedule import training_schedule
from eri_export.choices import USUAL, Ranges
from eri_runtime.bundle import (
    Defaults,
    Family,
    LatentSpec,
    ScheduleSpec,
    TokenizerSpec,
)
from eri_runtime.errors import CheckpointError, EriError, short

P = ParamSpec("P")
T = TypeVar("T")

# Default steps and guidance scale: those of diffusers' pipelines.
CALL_DEFAULTS: Mapping[Family, tuple[int, float]] = {
    "sdxl": (50, 5.0),
    "sd35": (28, 7.0),
    "flux": (28, 3.5),
}
SCHNELL = (4, 0.0)  # a Flux without guidance embedding is distilled to few steps

# Prompt lengths of diffusers' pipelines, for a checkpoint without tokenizers.
CLIP_TOKENS = 77
T5_TOKENS: Mapping[Family, int] = {"sd35": 256, "flux": 512}
MOST_T5_TOKENS = 512
T5_TOKENIZERS: Mapping[Family, str] = {"sd35": "tokenizer_3", "flux": "tokenizer_2"}

FLUX_SAMPLE_SIZE = 128  # latents; Flux's config has no sample_size
FLUX_PATCH = 2  # the pipeline packs the patches; the config's patch_size is 1

BUILT_WITH = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def reads_configs(
    function: Callable[Concatenate[Checkpoint, P], T],
) -> Callable[Concatenate[Checkpoint, P], T]:
    """Makes `function` raise `CheckpointError` for whatever a malformed config makes it raise.

    The classes of diffusers and transformers check their arguments with errors of many types.
    """

    @functools.wraps(function)
    def read(checkpoint: Checkpoint, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(checkpoint, *args, **kwargs)
        except EriError:
            raise
        except Exception as error:
            raise CheckpointError(
                checkpoint.root,
                got=f"{type(error).__name__}: {short(str(error))}",
                expected=f"configs of the {checkpoint.family} family",
            ) from error

    return read


@reads_configs
def schedule_spec(checkpoint: Checkpoint) -> ScheduleSpec:
    """Returns the training schedule of the scheduler's config, completed by its class's defaults.

    Raises `CheckpointError` for a scheduler that does not fit the family, or has settings that
    the schedule cannot express; the message names the key.
    """
    return training_schedule(settings_of(checkpoint))


@reads_configs
def latent_spec(checkpoint: Checkpoint) -> LatentSpec:
    """Returns the VAE's latents, and the side of the square of them that sizes are multiples of.

    Raises `CheckpointError` if there is neither a VAE nor a VAE's config.
    """
    if "vae" not in checkpoint.configs:
        raise CheckpointError(
            checkpoint.root, got="no VAE", expected="one, or its config", fix="name one with --vae"
        )
    vae = checkpoint.configs["vae"]
    channels, sdxl = int(vae["latent_channels"]), checkpoint.family == "sdxl"
    return LatentSpec(
        channels=channels,
        factor=2 ** (len(vae["block_out_channels"]) - 1),
        scale=float(vae["scaling_factor"]),
        # diffusers' pipelines read the shift for SD3.5 and Flux alone, mean and std for SDXL alone
        shift=0.0 if sdxl else float(vae.get("shift_factor") or 0.0),
        patch=_patch(checkpoint.family, checkpoint.denoiser.config),
        **(_statistics(checkpoint, channels) if sdxl else {}),
    )


def _statistics(checkpoint: Checkpoint, channels: int) -> dict[str, tuple[float, ...]]:
    """Returns the mean and standard deviation of each channel, if the VAE's config has both."""
    vae = checkpoint.configs["vae"]
    values: dict[str, Any] = {name: vae.get(f"latents_{name}") for name in ("mean", "std")}
    if None in values.values():
        return {}
    for name, value in values.items():
        if len(value) != channels:
            where, expected = f"{checkpoint.root}: latents_{name}", f"{channels} numbers"
            raise CheckpointError(where, got=f"{len(value)} numbers", expected=expected)
    return {name: tuple(map(float, value)) for name, value in values.items()}


def _patch(family: Family, denoiser: Mapping[str, Any]) -> int:
    """Returns the number that a latent's height and width must be a multiple of."""
    if family == "sdxl":
        return 1
    return int(denoiser["patch_size"]) if family == "sd35" else FLUX_PATCH


@reads_configs
def defaults(
    checkpoint: Checkpoint,
    latents: LatentSpec,
    tokenizers: Mapping[str, TokenizerSpec],
    ranges: Ranges = USUAL,
) -> Defaults:
    """Returns the defaults of diffusers' pipeline or a preset, at the best sizes of `ranges`.

    Raises `CheckpointError` for a scheduler that no sampler here follows.
    """
    family = checkpoint.family
    steps, guidance = _steps_and_guidance(checkpoint)
    sample = checkpoint.denoiser.config.get("sample_size") or FLUX_SAMPLE_SIZE
    height, width = sample if isinstance(sample, list) else (sample, sample)
    own = own_sampling(settings_of(checkpoint))
    usual = Defaults(
        sampler=own.sampler,
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=ranges.height.opt if ranges.height else int(height) * latents.factor,
        width=ranges.width.opt if ranges.width else int(width) * latents.factor,
        max_sequence_length=(
            ranges.tokens.opt if ranges.tokens else max_sequence_length(family, tokenizers)
        ),
    )
    return own.into(usual)


def _steps_and_guidance(checkpoint: Checkpoint) -> tuple[int, float]:
    if checkpoint.steps_and_guidance is not None:
        return checkpoint.steps_and_guidance
    if checkpoint.family == "flux" and not guidance_embedding(checkpoint):
        return SCHNELL
    return CALL_DEFAULTS[checkpoint.family]


def max_sequence_length(family: Family, tokenizers: Mapping[str, TokenizerSpec]) -> int:
    """Returns T5's default prompt length in a family that has a T5, else CLIP's length."""
    return t5_tokens(family, tokenizers)[0] if family in T5_TOKENS else clip_tokens(tokenizers)


def clip_tokens(tokenizers: Mapping[str, TokenizerSpec]) -> int:
    """Returns the length to which CLIP's prompts are padded."""
    return tokenizers["tokenizer"].max_length if "tokenizer" in tokenizers else CLIP_TOKENS


def t5_tokens(family: Family, tokenizers: Mapping[str, TokenizerSpec]) -> tuple[int, int]:
    """Returns the default and the largest length to which T5's prompts are padded."""
    name = T5_TOKENIZERS[family]
    most = tokenizers[name].max_length if name in tokenizers else MOST_T5_TOKENS
    return min(T5_TOKENS[family], most), most


@reads_configs
def attention_heads(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Returns the number of attention heads in each kind of the denoiser's layers."""
    config = checkpoint.denoiser.config
    if checkpoint.family != "sdxl":
        return (int(config["num_attention_heads"]),)
    # `attention_head_dim` of diffusers' UNets has always been the number of heads
    heads = config.get("num_attention_heads") or config["attention_head_dim"]
    blocks = config["down_block_types"]
    by_block = heads if isinstance(heads, list | tuple) else [heads] * len(blocks)
    middle = (by_block[-1], str(config.get("mid_block_type")))
    paired = [*zip(by_block, blocks, strict=True), middle]
    return tuple(int(count) for count, block in paired if "CrossAttn" in block) or (1,)


def guidance_embedding(checkpoint: Checkpoint) -> bool:
    """Returns whether the denoiser takes the guidance scale as an input."""
    config = checkpoint.denoiser.config  # Flux's key, and that of LCM's UNets
    return bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))


def zero_empty_negative(checkpoint: Checkpoint) -> bool:
    """Returns whether a missing negative prompt means zero embeddings, as SDXL's default does."""
    zeros = bool(checkpoint.index.get("force_zeros_for_empty_prompt", True))
    return checkpoint.family == "sdxl" and zeros


def built_with() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that an export depends on."""
    versions = {name: importlib.metadata.version(name) for name in BUILT_WITH}
    return {"python": platform.python_version(), **versions}
