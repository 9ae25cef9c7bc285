"""A call's arguments, checked once and completed from the bundle's defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eri_runtime.conditioning import Condition, given_condition
from eri_runtime.errors import SizeError, UnknownNameError, UsageError
from eri_runtime.guidance import check_scale
from eri_runtime.latents import latent_shape, patchify
from eri_runtime.noise import image_seeds
from eri_runtime.samplers import Sampler, find_sampler
from eri_runtime.spec import Bundle

OutputType = Literal["pil", "np", "latent"]
OUTPUT_TYPES = ("pil", "np", "latent")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked call: `prompts` and `seeds` have one entry an image's prompt and an image."""

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...] | None
    positive: Condition | None
    negative: Condition | None
    height: int
    width: int
    steps: int
    guidance_scale: float
    true_cfg_scale: float
    images_per_prompt: int
    seeds: tuple[int, ...]
    sampler: Sampler
    eta: float
    max_sequence_length: int
    latents: NDArray[np.float32] | None
    output_type: OutputType

    @property
    def batch(self) -> int:
        """The number of images."""
        return len(self.seeds)


def make_request(
    bundle: Bundle,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    *,
    embeds: dict[str, NDArray | None],
    height: int | None,
    width: int | None,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    true_cfg_scale: float,
    num_images_per_prompt: int,
    seed: int | Sequence[int] | None,
    sampler: str | None,
    eta: float,
    max_sequence_length: int | None,
    latents: NDArray | None,
    output_type: str,
) -> Request:
    """Check the arguments of a call; raises `UsageError` or one of its kinds for a bad one."""
    defaults = bundle.defaults
    positive = given_condition("prompt", embeds["prompt"], embeds["pooled_prompt"])
    negative = given_condition(
        "negative_prompt", embeds["negative_prompt"], embeds["negative_pooled_prompt"]
    )
    prompts = _prompts(prompt, positive)
    if num_images_per_prompt < 1:
        raise UsageError("num_images_per_prompt", got=num_images_per_prompt, expected="1 or more")
    if output_type not in OUTPUT_TYPES:
        expected = f"one of {', '.join(OUTPUT_TYPES)}"
        raise UnknownNameError("output_type", got=repr(output_type), expected=expected)
    count = len(prompts) * num_images_per_prompt
    height, width = _or(height, defaults.height), _or(width, defaults.width)
    return Request(
        prompts=prompts,
        negative_prompts=_negative_prompts(negative_prompt, len(prompts)),
        positive=positive,
        negative=negative,
        height=height,
        width=width,
        steps=_or(num_inference_steps, defaults.num_inference_steps),
        guidance_scale=check_scale("guidance_scale", _or(guidance_scale, defaults.guidance_scale)),
        true_cfg_scale=check_scale("true_cfg_scale", true_cfg_scale),
        images_per_prompt=num_images_per_prompt,
        seeds=image_seeds(seed, count),
        sampler=find_sampler(_or(sampler, defaults.sampler), bundle.schedule.kind),
        eta=check_scale("eta", eta),
        max_sequence_length=_or(max_sequence_length, defaults.max_sequence_length),
        latents=_latents(bundle, latents, count, height, width),
        output_type=output_type,  # type: ignore[arg-type]
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _prompts(prompt: str | Sequence[str] | None, given: Condition | None) -> tuple[str, ...]:
    """The prompts as a tuple; with embeddings instead, an empty text for each."""
    if given is not None:
        if prompt is not None:
            raise UsageError("prompt", got="prompt and prompt_embeds", expected="one of them")
        return ("",) * len(given.embeds)
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt or ())
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise UsageError("prompt", got=repr(prompt), expected="a string or a list of strings")
    return prompts


def _negative_prompts(prompt: str | Sequence[str] | None, count: int) -> tuple[str, ...] | None:
    if prompt is None:
        return None
    prompts = (prompt,) * count if isinstance(prompt, str) else tuple(prompt)
    if len(prompts) != count:
        raise UsageError("negative_prompt", got=f"{len(prompts)} texts", expected=f"1 or {count}")
    return prompts


def _latents(
    bundle: Bundle, latents: NDArray | None, count: int, height: int, width: int
) -> NDArray[np.float32] | None:
    """Initial unit noise in the layout the denoiser sees: packed for Flux, (B, C, h, w) else."""
    shape = (count, *latent_shape(bundle.latents, height, width))
    if latents is None:
        return None
    latents = np.asarray(latents, dtype=np.float32)
    if bundle.family == "flux":
        if latents.shape == shape:
            return patchify(latents, bundle.latents.patch)
        shape = patchify(np.broadcast_to(np.float32(0), shape), bundle.latents.patch).shape
    if latents.shape != shape:
        raise SizeError("latents", got=latents.shape, expected=shape)
    return latents
