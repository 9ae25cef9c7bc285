"""A call's arguments, checked once and completed from the bundle's defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, cast, get_args

import numpy as np
from numpy.typing import NDArray

from eri_runtime.conditioning import Condition, check_encoders, given_condition
from eri_runtime.errors import SizeError, UnknownNameError, UsageError
from eri_runtime.guidance import check_scale
from eri_runtime.latents import latent_shape, patchify
from eri_runtime.noise import NoiseSource, image_seeds
from eri_runtime.samplers import Sampler, find_sampler
from eri_runtime.spec import Bundle, ShapeRange

OutputType = Literal["pil", "np", "latent"]
DECODER = "vae_decoder"


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
    noise: NoiseSource | None
    output_type: OutputType

    @property
    def batch(self) -> int:
        """The number of images."""
        return len(self.seeds)


class Words(TypedDict, total=False):
    """The keywords of a call, named as in diffusers; one left out, or None, is the default.

    `height`, `width`, `num_inference_steps`, `guidance_scale`, `sampler` and
    `max_sequence_length` default to the bundle's. `guidance_scale` is CFG for SDXL and SD3.5, off
    at 1 or less, and the embedded guidance for Flux, whose CFG is `true_cfg_scale` (1) with a
    negative prompt. Image i has seed `seed + i`, or `seed[i]`, and the noise diffusers draws with
    `torch.Generator("cpu")` of that seed; no seed draws one. `noise` is a `NoiseSource` to draw
    from instead. `eta` (0) is DDIM's noise. `latents` is unit noise (B, C, h, w), or packed for
    Flux. Embeddings are (B, T, D) and pooled (B, P). `output_type` is `pil`, `np` ((B, H, W, 3) in
    [0, 1]) or `latent`.
    """

    height: int | None
    width: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    true_cfg_scale: float | None
    num_images_per_prompt: int | None
    seed: int | Sequence[int] | None
    sampler: str | None
    eta: float | None
    max_sequence_length: int | None
    latents: NDArray | None
    noise: NoiseSource | None
    prompt_embeds: NDArray | None
    pooled_prompt_embeds: NDArray | None
    negative_prompt_embeds: NDArray | None
    negative_pooled_prompt_embeds: NDArray | None
    output_type: str | None


def make_request(
    bundle: Bundle,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    words: Words,
) -> Request:
    """Check the arguments of a call; raises `UsageError` or one of its kinds for a bad one."""
    _check_known(words)
    defaults = bundle.defaults
    output_type = _output_type(bundle, _or(words.get("output_type"), "pil"))
    positive = _embeds(words, "prompt_embeds", "pooled_prompt_embeds")
    negative = _embeds(words, "negative_prompt_embeds", "negative_pooled_prompt_embeds")
    prompts = _prompts(bundle, prompt, positive)
    per_prompt = _or(words.get("num_images_per_prompt"), 1)
    count = _check_count(bundle, len(prompts), per_prompt)
    height, width = _size(bundle, words)
    sampler = _or(words.get("sampler"), defaults.sampler)
    guidance = _or(words.get("guidance_scale"), defaults.guidance_scale)
    return Request(
        prompts=prompts,
        negative_prompts=_negative_prompts(negative_prompt, len(prompts)),
        positive=positive,
        negative=negative,
        height=height,
        width=width,
        steps=_or(words.get("num_inference_steps"), defaults.num_inference_steps),
        guidance_scale=check_scale("guidance_scale", guidance),
        true_cfg_scale=check_scale("true_cfg_scale", _or(words.get("true_cfg_scale"), 1.0)),
        images_per_prompt=per_prompt,
        seeds=image_seeds(words.get("seed"), count),
        sampler=find_sampler(sampler, bundle.schedule.kind),
        eta=check_scale("eta", _or(words.get("eta"), 0.0)),
        max_sequence_length=_or(words.get("max_sequence_length"), defaults.max_sequence_length),
        latents=_latents(bundle, words.get("latents"), count, height, width),
        noise=_noise(words.get("noise")),
        output_type=output_type,
    )


def _check_known(words: Words) -> None:
    for word in words:
        if word not in Words.__annotations__:
            expected = f"one of {', '.join(Words.__annotations__)}"
            raise UnknownNameError("keyword", got=repr(word), expected=expected)


def _embeds(words: Words, embeds: str, pooled: str) -> Condition | None:
    given: Any = words
    return given_condition(embeds, given.get(embeds), given.get(pooled))


def _check_count(bundle: Bundle, prompts: int, per_prompt: int) -> int:
    """The number of images, if the bundle was exported for as many."""
    if per_prompt < 1:
        raise UsageError("num_images_per_prompt", got=per_prompt, expected="1 or more")
    count, images = prompts * per_prompt, _images(bundle)
    if count not in images:
        expected = f"{images.min} to {images.max}, as it was exported"
        fix = "make them in several calls" if count > images.max else "ask for more"
        raise SizeError("images in one call", got=count, expected=expected, fix=fix)
    return count


def _images(bundle: Bundle) -> ShapeRange:
    """What the VAE's decoder takes, or where there is none, the denoiser with CFG."""
    if DECODER in bundle.components:
        return bundle.components[DECODER].ranges["batch"]
    rows = bundle.components["denoiser"].ranges["batch"]
    return ShapeRange(min=max(1, rows.min // 2), opt=max(1, rows.opt // 2), max=rows.max // 2)


def _output_type(bundle: Bundle, name: str) -> OutputType:
    """`name`, if it is one and the bundle has what it takes."""
    if name not in get_args(OutputType):
        expected = f"one of {', '.join(get_args(OutputType))}"
        raise UnknownNameError("output_type", got=repr(name), expected=expected)
    if name != "latent" and DECODER not in bundle.components:
        got, fix = f"{name!r} of a bundle without {DECODER}", "or export again with `--vae`"
        raise UsageError("output_type", got=got, expected="latent", fix=fix)
    return cast(OutputType, name)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _size(bundle: Bundle, words: Words) -> tuple[int, int]:
    """Height and width, if latents can have that size and the bundle was exported for it."""
    height = _or(words.get("height"), bundle.defaults.height)
    width = _or(words.get("width"), bundle.defaults.width)
    latent_shape(bundle.latents, height, width)
    factor = bundle.latents.factor
    for name, pixels in (("height", height), ("width", width)):
        side = _side(bundle, name)
        if pixels // factor not in side:
            expected = f"{side.min * factor} to {side.max * factor}, as it was exported"
            raise SizeError(name, got=pixels, expected=expected)
    return height, width


def _side(bundle: Bundle, name: str) -> ShapeRange:
    """The latents a height or width may have: the decoder's, or where there is none the denoiser's.

    Flux's denoiser has its latents packed, so it knows only the patches of the largest square.
    """
    ranges = bundle.components[DECODER if DECODER in bundle.components else "denoiser"].ranges
    if name in ranges:
        return ranges[name]
    patch, most = bundle.latents.patch, math.isqrt(ranges["patches"].max)
    return ShapeRange(min=patch, opt=patch, max=patch * most)


def _prompts(
    bundle: Bundle, prompt: str | Sequence[str] | None, given: Condition | None
) -> tuple[str, ...]:
    """The prompts as a tuple; with embeddings instead, an empty text for each."""
    if given is not None:
        if prompt is not None:
            raise UsageError("prompt", got="prompt and prompt_embeds", expected="one of them")
        return ("",) * len(given.embeds)
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt or ())
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise UsageError("prompt", got=repr(prompt), expected="a string or a list of strings")
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
    if bundle.family == "flux":
        if latents.shape == shape:
            return patchify(latents, bundle.latents.patch)
        shape = patchify(np.broadcast_to(np.float32(0), shape), bundle.latents.patch).shape
    if latents.shape != shape:
        raise SizeError("latents", got=latents.shape, expected=shape)
    return latents


def _noise(source: NoiseSource | None) -> NoiseSource | None:
    if source is not None and not callable(source):
        raise UsageError(
            "noise", got=repr(source), expected="a NoiseSource: (draw, shape) -> array"
        )
    return source
