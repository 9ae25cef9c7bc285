"""The manifest's facts, taken from the checkpoint's own configs."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import logging
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import diffusers

from eri_export.checkpoint import Checkpoint
from eri_export.ranges import USUAL, Ranges
from eri_export.sources.found import with_defaults
from eri_runtime.errors import CheckpointError, EriError, short
from eri_runtime.spec import (
    BetaCurve,
    Defaults,
    Family,
    FinalSigma,
    LatentSpec,
    Prediction,
    ScheduleSpec,
    Spacing,
    TokenizerSpec,
)

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

PREDICTIONS: Mapping[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SPACINGS = ("leading", "trailing", "linspace")
UNHEARD = ("trained_betas", "shift_terminal", "invert_sigmas")
PREFERENCES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
CURVES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SAMPLERS: Mapping[str, str] = {"DDIMScheduler": "ddim"}  # of SDXL; every other one starts as Euler

# Steps and guidance: diffusers' own defaults of each pipeline's call.
CALLS: Mapping[Family, tuple[int, float]] = {
    "sdxl": (50, 5.0),
    "sd35": (28, 7.0),
    "flux": (28, 3.5),
}
UNDISTILLED_FLUX = (4, 0.0)  # no guidance embedding: distilled to few steps, as schnell is

# Prompt lengths: what diffusers' pipelines use and take, where no tokenizer says otherwise.
CLIP_TOKENS = 77
T5_TOKENS: Mapping[Family, int] = {"sd35": 256, "flux": 512}
MOST_T5_TOKENS = 512
T5_TOKENIZERS: Mapping[Family, str] = {"sd35": "tokenizer_3", "flux": "tokenizer_2"}

FLUX_SAMPLE_SIZE = 128  # latents; Flux's config names none
FLUX_PATCH = 2  # packed by the pipeline; the config's own patch_size is 1

BUILT_WITH = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def reads_configs(
    function: Callable[Concatenate[Checkpoint, P], T],
) -> Callable[Concatenate[Checkpoint, P], T]:
    """Make what a config of the wrong types does to `function` a `CheckpointError`.

    The classes of the libraries check their own arguments, each by errors of its own.
    """

    @functools.wraps(function)
    def read(checkpoint: Checkpoint, *args: P.args, **kwargs: P.kwargs) -> T:
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
    """The training schedule, by the scheduler's config with its class's defaults filled in.

    Raises `CheckpointError` for a scheduler of another kind than the family's.
    """
    where, name = checkpoint.root / "scheduler", str(checkpoint.scheduler.get("_class_name"))
    flow = name.startswith("FlowMatch")
    if not hasattr(diffusers, name) or flow != (checkpoint.family != "sdxl"):
        expected = "a flow-matching scheduler" if checkpoint.family != "sdxl" else "a DDPM-like one"
        raise CheckpointError(where, got=f"class {name!r}", expected=expected)
    config = with_defaults(name, checkpoint.scheduler)
    _refuse_unheard(where, config)
    if not flow:
        return _vp(where, config)
    # diffusers' Flux hands its scheduler N levels down to 1/N, its SD3 lets it choose its own
    return _flow(config, "trailing" if checkpoint.family == "flux" else "linspace")


def _vp(where: Path, config: Mapping[str, Any]) -> ScheduleSpec:
    return ScheduleSpec(
        kind="vp",
        prediction=PREDICTIONS[_one_of(where, config, "prediction_type", PREDICTIONS)],
        num_train_timesteps=int(config["num_train_timesteps"]),
        beta_start=float(config["beta_start"]),
        beta_end=float(config["beta_end"]),
        beta_curve=cast(BetaCurve, _one_of(where, config, "beta_schedule", CURVES)),
        spacing=cast(Spacing, _one_of(where, config, "timestep_spacing", SPACINGS)),
        final=_final(config),
        steps_offset=int(config.get("steps_offset", 0)),
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
    )


def _final(config: Mapping[str, Any]) -> FinalSigma:
    """What follows the last step: DDIM and Euler each have a word for it.

    Published SDXL configs hold DDIM's word for their Euler, which does not hear it.
    """
    heard = inspect.signature(getattr(diffusers, config["_class_name"])).parameters
    if "set_alpha_to_one" in heard:
        return "zero" if config["set_alpha_to_one"] else "sigma_min"
    return "zero" if config.get("final_sigmas_type", "zero") == "zero" else "sigma_min"


def _flow(config: Mapping[str, Any], spacing: Spacing) -> ScheduleSpec:
    return ScheduleSpec(
        kind="flow",
        prediction="flow",
        num_train_timesteps=int(config["num_train_timesteps"]),
        spacing=spacing,
        shift=float(config["shift"]),
        dynamic_shift=bool(config["use_dynamic_shifting"]),
        base_shift=float(config["base_shift"]),
        max_shift=float(config["max_shift"]),
        base_tokens=int(config["base_image_seq_len"]),
        max_tokens=int(config["max_image_seq_len"]),
    )


def _refuse_unheard(where: Path, config: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` for a setting that changes the schedule in a way we do not know."""
    for key in UNHEARD:
        if config.get(key):
            raise CheckpointError(f"{where}: {key}", got=config[key], expected="unset")
    for key in PREFERENCES:
        if config.get(key):
            log.warning("%s: %s is not taken over; steps are spaced as without it", where, key)


def _one_of(where: object, config: Mapping[str, Any], key: str, known: Any) -> str:
    value = str(config.get(key))
    if value not in known:
        raise CheckpointError(f"{where}: {key}", got=value, expected=f"one of {', '.join(known)}")
    return value


@reads_configs
def latent_spec(checkpoint: Checkpoint) -> LatentSpec:
    """The latents of the VAE, and the square of them that one denoiser token covers.

    Raises `CheckpointError` where there is neither a VAE nor the config of one.
    """
    if "vae" not in checkpoint.configs:
        raise CheckpointError(
            checkpoint.root, got="no VAE", expected="one, or its config", fix="name one with --vae"
        )
    vae = checkpoint.configs["vae"]
    return LatentSpec(
        channels=int(vae["latent_channels"]),
        factor=2 ** (len(vae["block_out_channels"]) - 1),
        scale=float(vae["scaling_factor"]),
        shift=float(vae.get("shift_factor") or 0.0),
        patch=_patch(checkpoint.family, checkpoint.denoiser.config),
    )


def _patch(family: Family, denoiser: Mapping[str, Any]) -> int:
    if family == "sdxl":  # a UNet halves its input after every block but the last
        return 2 ** (len(denoiser["block_out_channels"]) - 1)
    return int(denoiser["patch_size"]) if family == "sd35" else FLUX_PATCH


@reads_configs
def defaults(
    checkpoint: Checkpoint,
    latents: LatentSpec,
    tokenizers: Mapping[str, TokenizerSpec],
    ranges: Ranges = USUAL,
) -> Defaults:
    """What diffusers' pipeline does when its caller says nothing, at the sizes best served."""
    family = checkpoint.family
    steps, guidance = CALLS[family]
    if family == "flux" and not guidance_embedding(checkpoint):
        steps, guidance = UNDISTILLED_FLUX
    sample = checkpoint.denoiser.config.get("sample_size") or FLUX_SAMPLE_SIZE
    height, width = sample if isinstance(sample, list) else (sample, sample)
    euler = "euler" if family == "sdxl" else "flow_euler"
    return Defaults(
        sampler=SAMPLERS.get(str(checkpoint.scheduler["_class_name"]), euler),
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=ranges.height.opt if ranges.height else int(height) * latents.factor,
        width=ranges.width.opt if ranges.width else int(width) * latents.factor,
        max_sequence_length=(
            ranges.tokens.opt if ranges.tokens else max_sequence_length(family, tokenizers)
        ),
    )


def max_sequence_length(family: Family, tokenizers: Mapping[str, TokenizerSpec]) -> int:
    """T5's usual prompt length in a family that has a T5, CLIP's in one that has none."""
    return t5_tokens(family, tokenizers)[0] if family in T5_TOKENS else clip_tokens(tokenizers)


def clip_tokens(tokenizers: Mapping[str, TokenizerSpec]) -> int:
    """The length CLIP's prompts are filled to."""
    return tokenizers["tokenizer"].max_length if "tokenizer" in tokenizers else CLIP_TOKENS


def t5_tokens(family: Family, tokenizers: Mapping[str, TokenizerSpec]) -> tuple[int, int]:
    """The lengths T5's prompts are filled to, usually and at most."""
    name = T5_TOKENIZERS[family]
    most = tokenizers[name].max_length if name in tokenizers else MOST_T5_TOKENS
    return min(T5_TOKENS[family], most), most


@reads_configs
def attention_heads(checkpoint: Checkpoint) -> tuple[int, ...]:
    """How many heads the denoiser's layers of attention have, of each kind of layer."""
    config = checkpoint.denoiser.config
    if checkpoint.family != "sdxl":
        return (int(config["num_attention_heads"]),)
    # what diffusers' UNets call a head's dimension has always been the number of heads
    heads = config.get("num_attention_heads") or config["attention_head_dim"]
    blocks = config["down_block_types"]
    each = heads if isinstance(heads, list | tuple) else [heads] * len(blocks)
    paired = [*zip(each, blocks, strict=True), (each[-1], str(config.get("mid_block_type")))]
    return tuple(int(count) for count, block in paired if "CrossAttn" in block) or (1,)


def guidance_embedding(checkpoint: Checkpoint) -> bool:
    """Whether the denoiser takes the guidance scale as an input."""
    return bool(checkpoint.denoiser.config.get("guidance_embeds", False))


def zero_empty_negative(checkpoint: Checkpoint) -> bool:
    """SDXL's rule that a missing negative prompt is all zeros; diffusers' default is yes."""
    stated = bool(checkpoint.index.get("force_zeros_for_empty_prompt", True))
    return checkpoint.family == "sdxl" and stated


def built_with() -> dict[str, str]:
    """Versions of what an export depends on."""
    versions = {name: importlib.metadata.version(name) for name in BUILT_WITH}
    return {"python": platform.python_version(), **versions}
