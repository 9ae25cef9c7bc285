"""Positional arguments of a call, in the order of diffusers' text-to-image pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eri_runtime.errors import UsageError

# after `prompt`; from the signatures of diffusers 0.42
_EMBEDS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
    "ip_adapter_image",
    "ip_adapter_image_embeds",
)
_SIZE = ("height", "width", "num_inference_steps")
_OUTPUT = ("output_type", "return_dict")
_CALLBACK = ("callback_on_step_end", "callback_on_step_end_tensor_inputs")
_RUN = ("num_images_per_prompt", "generator", "latents")
POSITIONAL: Mapping[str, tuple[str, ...]] = {
    "sdxl": (
        *("prompt_2", *_SIZE, "timesteps", "sigmas", "denoising_end", "guidance_scale"),
        *("negative_prompt", "negative_prompt_2", "num_images_per_prompt", "eta", "generator"),
        *("latents", *_EMBEDS, *_OUTPUT, "cross_attention_kwargs", "guidance_rescale"),
        *("original_size", "crops_coords_top_left", "target_size", "negative_original_size"),
        *("negative_crops_coords_top_left", "negative_target_size", "clip_skip", *_CALLBACK),
    ),
    "sd35": (
        *("prompt_2", "prompt_3", *_SIZE, "sigmas", "guidance_scale"),
        *("negative_prompt", "negative_prompt_2", "negative_prompt_3", *_RUN, *_EMBEDS),
        *(*_OUTPUT, "joint_attention_kwargs", "clip_skip", *_CALLBACK, "max_sequence_length"),
        *("skip_guidance_layers", "skip_layer_guidance_scale", "skip_layer_guidance_stop"),
        *("skip_layer_guidance_start", "mu"),
    ),
    "flux": (
        *("prompt_2", "negative_prompt", "negative_prompt_2", "true_cfg_scale", *_SIZE),
        *("sigmas", "guidance_scale", *_RUN, "prompt_embeds", "pooled_prompt_embeds"),
        *("ip_adapter_image", "ip_adapter_image_embeds", "negative_ip_adapter_image"),
        *("negative_ip_adapter_image_embeds", "negative_prompt_embeds"),
        *("negative_pooled_prompt_embeds", *_OUTPUT, "joint_attention_kwargs", *_CALLBACK),
        "max_sequence_length",
    ),
}


def name_positional(
    family: str, positional: tuple[Any, ...], words: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns `words` with the positional arguments after `prompt` under their names.

    Raises `UsageError` for more of them than diffusers' pipeline of the family takes, and for one
    that is also named.
    """
    names = POSITIONAL[family]
    if len(positional) > len(names):
        got, expected = f"{len(positional) + 1} of them", f"at most {len(names) + 1}"
        raise UsageError("positional arguments", got=got, expected=expected, fix="name them")
    named = dict(zip(names, positional, strict=False))
    for name in named.keys() & {name for name, value in words.items() if value is not None}:
        raise UsageError(name, got="it twice, by position and by name", expected="it once")
    return {**words, **named}
