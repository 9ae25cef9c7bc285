"""Validates the arguments of a call once, and completes them with the bundle's defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import Bundle, LevelSpec, Spacing
from eri_runtime.checks import boolean, integer
from eri_runtime.latents import check_count
from eri_runtime.request.arguments import (
    Hook,
    OutputType,
    check_call_spacing,
    check_embeds,
    check_encodable,
    check_guidance,
    check_hook,
    check_image_size,
    check_latents,
    check_lora_scale,
    check_negative_prompts,
    check_output_type,
    check_prompts,
    check_sampler_options,
    check_sigmas,
    check_steps,
    default_levels,
)
from eri_runtime.request.encoder_prompts import (
    check_encoder_prompts,
    check_negative_encoder_prompts,
)
from eri_runtime.request.image_to_image import Edit, make_edit
from eri_runtime.request.kept_pixels import check_keep
from eri_runtime.request.keywords import Words, merge_configs
from eri_runtime.request.lora_tags import merged_loras, tagged_loras
from eri_runtime.request.micro_conditions import MicroConditions, check_micro_conditions
from eri_runtime.request.noise_arguments import check_call_noise
from eri_runtime.request.prompt_syntax import check_prompt_syntax, warn_of_syntax
from eri_runtime.request.sampler_choice import check_sampler
from eri_runtime.request.schedule_part import SchedulePart, check_schedule_part
from eri_runtime.request.start_images import from_tensors
from eri_runtime.request.step_cache import StepCache, check_step_cache
from eri_runtime.request.step_end import StepEnd, check_step_end
from eri_runtime.sampling import (
    Guidance,
    NoiseName,
    NoiseSource,
    Sampler,
    SigmaName,
)
from eri_runtime.text import Condition, Prompt, PromptLike, Syntax
from eri_runtime.weights import check_loras


@dataclass(frozen=True, kw_only=True)
class Request:
    """The validated arguments of a call, as `Pipeline.request` returns them.

    Attributes:
        prompts: The prompts; with `positive`, an empty text for each.
        negative_prompts: A negative prompt per prompt, or None.
        negative_others: For each negative prompt the texts of the second and later text encoders,
            or None where all have the same.
        positive: Embeddings given instead of prompts, or None.
        negative: Embeddings given instead of negative prompts, or None.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        steps: Number of denoising steps.
        sampler: The sampler.
        options: All options of the sampler, by name.
        sigmas: Name of the noise levels, or one level per step.
        levels: The noise levels of the checkpoint's scheduler instead of `sigmas`, or None.
        spacing: The spacing of the timesteps instead of the checkpoint's, or None.
        guidance: Scale of CFG and embedded guidance per image, rescale and interval.
        hook: Function x_0 -> x_0 that is called in every step.
        step_cache: How its steps are cached, or None.
        images_per_prompt: Number of images per prompt.
        seeds: The seed of each image.
        seeded: Whether these seeds repeat the noise; not with a generator that was drawn from.
        noise: A noise source, or the name of one.
        latents: Initial unit noise in the denoiser's layout, or None.
        edit: Image, mask, strength and overlay for image to image, or None.
        max_sequence_length: Longest T5 prompt in tokens.
        output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
        micro: SDXL's micro-conditioning, or None for that of an uncropped picture.
        part: Timesteps of the call's own, and which part of the schedule it runs.
        lora_scale: Factor of the scales of all LoRAs.
        step_end: The callback between the steps, or None.
        loras: Scales of the LoRAs that are inputs of the denoiser, by name, for each image.
        merged_loras: Scales by name of the LoRAs that the prompts' tags say, where LoRAs are merged
            into the weights.
        syntax: How the prompts are read: `"plain"`, or `"a1111"` for AUTOMATIC1111's syntax.

    Example:
        >>> request = pipe.request("a red heart", seed=0, num_images_per_prompt=2)
        >>> request.batch, request.seeds, request.sampler.name
        (2, (0, 1), 'flow_euler')
    """

    prompts: tuple[Prompt, ...]
    negative_prompts: tuple[str, ...] | None
    negative_others: tuple[tuple[str, ...], ...] | None
    positive: Condition | None
    negative: Condition | None
    height: int
    width: int
    steps: int
    sampler: Sampler
    options: Mapping[str, float]
    sigmas: SigmaName | Sequence[float]
    levels: LevelSpec | None
    spacing: Spacing | None
    guidance: Guidance
    hook: Hook
    step_cache: StepCache | None
    images_per_prompt: int
    seeds: tuple[int, ...]
    seeded: bool
    noise: NoiseSource | NoiseName
    latents: NDArray[np.float32] | None
    edit: Edit | None
    max_sequence_length: int
    output_type: OutputType
    micro: MicroConditions | None
    part: SchedulePart
    lora_scale: float
    step_end: StepEnd | None
    loras: tuple[Mapping[str, float], ...]
    merged_loras: Mapping[str, float]
    syntax: Syntax

    @property
    def batch(self) -> int:
        """Number of images."""
        return len(self.seeds)

    @property
    def known_seeds(self) -> tuple[int, ...]:
        """The seeds that repeat the noise, or none if a generator made it that has none."""
        return self.seeds if self.seeded else ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text of the request, for limits on their length."""
        own = [text for prompt in self.prompts for text, _ in prompt.parts]
        others = [text for prompt in self.prompts for text in prompt.others]
        negative_others = [text for texts in self.negative_others or () for text in texts]
        return (*own, *others, *(self.negative_prompts or ()), *negative_others)

    @property
    def first_draw(self) -> int:
        """Number of the loop's first draw of noise; earlier draws make the initial latents."""
        return 1 if self.edit is None else self.edit.first_draw


def make_request(
    bundle: Bundle,
    prompt: PromptLike | Sequence[PromptLike] | None,
    negative_prompt: str | Sequence[str] | None,
    words: Words,
) -> Request:
    """Validates the arguments of a call.

    Args:
        bundle: The bundle's manifest, which has the defaults and limits.
        prompt: A prompt or a list of prompts; None with `prompt_embeds`.
        negative_prompt: A negative prompt for all prompts, or a list of one per prompt; or None.
        words: All other keywords.

    Raises:
        UsageError: If an argument is invalid.
    """
    defaults = bundle.defaults
    sampler, keywords = check_sampler(bundle, merge_configs(words))
    boolean("return_dict", keywords.get("return_dict", True))
    part = check_schedule_part(bundle, keywords)
    if part.timesteps is not None:
        keywords["timesteps"] = part.timesteps
    keywords["sigmas"] = check_sigmas(keywords)
    output_type = check_output_type(bundle, keywords.get("output_type", "pil"))
    positive = check_embeds(keywords, "prompt_embeds", "pooled_prompt_embeds")
    negative = check_embeds(keywords, "negative_prompt_embeds", "negative_pooled_prompt_embeds")
    syntax = check_prompt_syntax(keywords)
    prompts = check_prompts(bundle, prompt, positive, syntax)
    prompts = check_encoder_prompts(bundle, keywords, prompts, positive)
    negatives = check_negative_prompts(negative_prompt, len(prompts), negative)
    negatives, negative_others = check_negative_encoder_prompts(
        bundle, keywords, negatives, len(prompts), negative
    )
    warn_of_syntax(keywords, (*map(str, prompts), *(negatives or ())))
    per_prompt = integer("num_images_per_prompt", keywords.get("num_images_per_prompt", 1), 1)
    count = check_count(bundle, len(prompts) * per_prompt)
    keywords["image"] = check_encodable(bundle, keywords.get("image"))
    height, width = check_image_size(bundle, keywords)
    levels = default_levels(bundle, sampler, keywords)
    has_negative = negatives is not None or negative is not None
    edit = _check_edit(bundle, keywords, output_type, (height, width), len(prompts), count, part)
    drawn = check_call_noise(keywords, count, edit)
    lora_scale = check_lora_scale(keywords)
    return Request(
        prompts=prompts,
        negative_prompts=negatives,
        negative_others=negative_others,
        positive=positive,
        negative=negative,
        height=height,
        width=width,
        steps=check_steps(bundle, keywords),
        sampler=sampler,
        options=check_sampler_options(bundle, sampler, keywords),
        sigmas=keywords["sigmas"],
        levels=levels,
        spacing=check_call_spacing(bundle, sampler, levels, keywords),
        guidance=check_guidance(bundle, keywords, count, len(prompts), has_negative=has_negative),
        hook=check_hook(bundle, sampler, keywords),
        step_cache=check_step_cache(bundle, keywords),
        images_per_prompt=per_prompt,
        seeds=drawn.seeds,
        seeded=drawn.seeded,
        noise=drawn.noise,
        latents=check_latents(bundle, keywords.get("latents"), count, height, width),
        edit=edit,
        max_sequence_length=integer(
            "max_sequence_length",
            keywords.get("max_sequence_length", defaults.max_sequence_length),
            0,
        ),
        output_type=output_type,
        micro=check_micro_conditions(bundle, keywords, height, width),
        part=part,
        lora_scale=lora_scale,
        step_end=check_step_end(bundle, keywords),
        loras=tuple(
            {name: scale * lora_scale for name, scale in each.items()}
            for each in tagged_loras(
                bundle, prompts, check_loras(bundle, keywords.get("loras"), count, len(prompts))
            )
        ),
        merged_loras=merged_loras(bundle, prompts),
        syntax=syntax,
    )


def _check_edit(
    bundle: Bundle,
    keywords: Mapping[str, Any],
    output_type: OutputType,
    size: tuple[int, int],
    prompts: int,
    count: int,
    part: SchedulePart,
) -> Edit | None:
    """Returns the edit of a call with an image, else None."""
    return make_edit(
        keywords["image"],
        from_tensors("mask", keywords.get("mask")),
        keywords.get("strength"),
        keep=check_keep(keywords, output_type),
        size=size,
        latents=bundle.latents,
        prompts=prompts,
        count=count,
        noised=part.start is None,
        brought=keywords.get("latents") is not None,
    )
