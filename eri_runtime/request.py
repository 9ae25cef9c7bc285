"""A call's arguments, checked once and completed from the bundle's defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import whole
from eri_runtime.conditioning import Condition, check_encoders, given_condition
from eri_runtime.denoise import unchanged
from eri_runtime.editing import Edit, image_size, make_edit
from eri_runtime.errors import SizeError, UnknownNameError, UsageError, short
from eri_runtime.guidance import NO_EMBEDDING, Guidance, check_interval, check_share, per_image
from eri_runtime.latents import latent_shape
from eri_runtime.limits import check_count, check_size
from eri_runtime.lora_inputs import check_loras
from eri_runtime.noise import NoiseName, NoiseSource, image_seeds
from eri_runtime.prompts import EMPTY, Prompt, PromptLike, make_prompts
from eri_runtime.samplers import Sampler, find_sampler
from eri_runtime.sigmas import SigmaName
from eri_runtime.spec import Bundle
from eri_runtime.thresholding import check_limits, dynamic_thresholding
from eri_runtime.vae import DECODER, ENCODER, pack
from eri_runtime.words import Words, complete

OutputType = Literal["pil", "np", "latent"]
Given = Mapping[str, Any]
Hook = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked call: `prompts` has one entry a prompt, `seeds` and `loras` one an image."""

    prompts: tuple[Prompt, ...]
    negative_prompts: tuple[str, ...] | None
    positive: Condition | None
    negative: Condition | None
    height: int
    width: int
    steps: int
    sampler: Sampler
    options: Mapping[str, float]
    sigmas: SigmaName | Sequence[float]
    guidance: Guidance
    hook: Hook
    images_per_prompt: int
    seeds: tuple[int, ...]
    noise: NoiseSource | NoiseName
    latents: NDArray[np.float32] | None
    edit: Edit | None
    max_sequence_length: int
    output_type: OutputType
    loras: tuple[Mapping[str, float], ...]

    @property
    def batch(self) -> int:
        """The number of images."""
        return len(self.seeds)

    @property
    def first_draw(self) -> int:
        """The loop's first draw of noise; those before it are for the first latents."""
        return 1 if self.edit is None else self.edit.first_draw


def make_request(
    bundle: Bundle,
    prompt: PromptLike | Sequence[PromptLike] | None,
    negative_prompt: str | Sequence[str] | None,
    words: Words,
) -> Request:
    """Check the arguments of a call; raises `UsageError` or one of its kinds for a bad one."""
    given, defaults = complete(words), bundle.defaults
    output_type = _output_type(bundle, given.get("output_type", "pil"))
    positive = _embeds(given, "prompt_embeds", "pooled_prompt_embeds")
    negative = _embeds(given, "negative_prompt_embeds", "negative_pooled_prompt_embeds")
    prompts = _prompts(bundle, prompt, positive)
    negatives = _negative_prompts(negative_prompt, len(prompts))
    per_prompt = whole("num_images_per_prompt", given.get("num_images_per_prompt", 1), 1)
    count = check_count(bundle, len(prompts) * per_prompt)
    height, width = _size(bundle, given)
    sampler = find_sampler(given.get("sampler", defaults.sampler), bundle.schedule.kind)
    has_negative = negatives is not None or negative is not None
    return Request(
        prompts=prompts,
        negative_prompts=negatives,
        positive=positive,
        negative=negative,
        height=height,
        width=width,
        steps=_steps(bundle, given),
        sampler=sampler,
        options=_options(sampler, given),
        sigmas=given.get("sigmas", "default"),
        guidance=_guidance(bundle, given, count, len(prompts), has_negative=has_negative),
        hook=_hook(given),
        images_per_prompt=per_prompt,
        seeds=image_seeds(given.get("seed"), count),
        noise=_noise(given.get("noise", "torch")),
        latents=_latents(bundle, given.get("latents"), count, height, width),
        edit=make_edit(
            _editable(bundle, given.get("image")),
            given.get("mask"),
            given.get("strength"),
            size=(height, width),
            factor=bundle.latents.factor,
            prompts=len(prompts),
            count=count,
        ),
        max_sequence_length=whole(
            "max_sequence_length",
            given.get("max_sequence_length", defaults.max_sequence_length),
            0,
        ),
        output_type=output_type,
        loras=check_loras(bundle, given.get("loras"), count, len(prompts)),
    )


def _steps(bundle: Bundle, words: Given) -> int:
    """As many as were asked for, or as there are noise levels, or the bundle's."""
    sigmas, usual = words.get("sigmas", "default"), bundle.defaults.num_inference_steps
    if isinstance(sigmas, Iterable) and not isinstance(sigmas, str):
        usual = sum(1 for level in sigmas if level != 0)
    return words.get("num_inference_steps", usual)


def _options(sampler: Sampler, words: Given) -> dict[str, float]:
    """All of the sampler's options; an `eta` of 0 is for any sampler that adds no noise."""
    options = words.get("sampler_options", {})
    if not isinstance(options, Mapping):
        raise UsageError("sampler_options", got=short(options), expected="a mapping of options")
    given = dict(options)
    if (eta := words.get("eta")) is not None and (eta != 0 or "eta" in sampler.options):
        given["eta"] = eta
    return sampler.checked(given)


def _guidance(
    bundle: Bundle, words: Given, count: int, prompts: int, *, has_negative: bool
) -> Guidance:
    """CFG is `guidance_scale` but for Flux, whose `true_cfg_scale` needs a negative prompt."""

    def numbers(name: str, default: float) -> NDArray[np.float32]:
        return per_image(name, words.get(name, default), count, prompts)

    asked = numbers("guidance_scale", bundle.defaults.guidance_scale)
    true_cfg, none = numbers("true_cfg_scale", 1.0), np.ones_like(asked)
    embeds = bundle.family == "flux"
    scale = (true_cfg if has_negative else none) if embeds else asked
    told = words.get("guidance_embedding")
    embedded = asked if told is None else per_image("guidance_embedding", told, count, prompts)
    if words.get("bypass_guidance", False):
        scale, embedded = none, np.full_like(asked, NO_EMBEDDING)
    return Guidance(
        scale=scale,
        embedded=embedded,
        rescale=check_share("guidance_rescale", words.get("guidance_rescale", 0.0)),
        interval=check_interval(words.get("guidance_interval")),
    )


def _hook(words: Given) -> Hook:
    """What is done to x_0 in every step: thresholding, then the caller's own."""
    own, limits = words.get("hook", unchanged), words.get("dynamic_thresholding")
    if not callable(own):
        raise UsageError("hook", got=short(own), expected="a function x_0 -> x_0")
    if limits is None:
        return own
    if not isinstance(limits, Sequence) or len(limits) != 2:
        expected = "(threshold, percentile), such as (1.0, 0.995)"
        raise UsageError("dynamic_thresholding", got=short(limits), expected=expected)
    check_limits(*limits)
    return lambda denoised: own(dynamic_thresholding(denoised, *limits))


def _editable(bundle: Bundle, image: Any) -> Any:
    """`image`, if the bundle can encode it."""
    if image is not None and ENCODER not in bundle.components:
        raise UsageError(
            "image",
            got=f"a bundle without {ENCODER}",
            expected="the VAE's encoder",
            fix="export again with `--vae`",
        )
    return image


def _embeds(words: Given, embeds: str, pooled: str) -> Condition | None:
    return given_condition(embeds, words.get(embeds), words.get(pooled))


def _output_type(bundle: Bundle, name: str) -> OutputType:
    """`name`, if it is one and the bundle has what it takes."""
    if name not in get_args(OutputType):
        expected = f"one of {', '.join(get_args(OutputType))}"
        raise UnknownNameError("output_type", got=repr(name), expected=expected)
    if name != "latent" and DECODER not in bundle.components:
        got, fix = f"{name!r} of a bundle without {DECODER}", "or export again with `--vae`"
        raise UsageError("output_type", got=got, expected="latent", fix=fix)
    return cast(OutputType, name)


def _size(bundle: Bundle, words: Given) -> tuple[int, int]:
    """Height and width: as asked for, or the image's, or the bundle's."""
    usual = bundle.defaults.height, bundle.defaults.width
    if (image := words.get("image")) is not None:
        usual = image_size(image, bundle.latents.factor * bundle.latents.patch)
    height = whole("height", words.get("height", usual[0]), 0)
    width = whole("width", words.get("width", usual[1]), 0)
    check_size(bundle, height, width)
    return height, width


def _prompts(
    bundle: Bundle,
    prompt: PromptLike | Sequence[PromptLike] | None,
    given: Condition | None,
) -> tuple[Prompt, ...]:
    """The prompts as a tuple; with embeddings instead, an empty text for each."""
    if given is not None:
        if prompt is not None:
            raise UsageError("prompt", got="prompt and prompt_embeds", expected="one of them")
        return (EMPTY,) * len(given.embeds)
    prompts = make_prompts(prompt)
    check_encoders(bundle)
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
    if latents is None:
        return None
    shape = (count, *latent_shape(bundle.latents, height, width))
    latents = np.asarray(latents, dtype=np.float32)
    if latents.shape == shape:
        return pack(bundle, latents)
    shape = pack(bundle, np.broadcast_to(np.float32(0), shape)).shape
    if latents.shape != shape:
        raise SizeError("latents", got=latents.shape, expected=shape)
    return latents


def _noise(source: Any) -> NoiseSource | NoiseName:
    named = isinstance(source, str) and source in get_args(NoiseName)
    if not callable(source) and not named:
        expected = f"one of {', '.join(get_args(NoiseName))}, or a function (draw, shape) -> array"
        raise UnknownNameError("noise", got=short(source), expected=expected)
    return cast(NoiseSource | NoiseName, source)
