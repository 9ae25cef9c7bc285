"""The keywords of a call, and how they are merged with configuration objects (`configs`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eri_runtime.errors import UnknownNameError, UsageError, short
from eri_runtime.request.configs import AncestralSamplerConfig, GuidanceConfig, SamplingConfig
from eri_runtime.sampling import NoiseSource


class Words(TypedDict, total=False):
    """The keyword arguments of a call: `pipe(prompt, negative_prompt, **words)`.

    They have diffusers' names where diffusers has such an option. Every keyword is optional; None
    means the default.

    Attributes:
        height: Height of the images in pixels, int. Default: the height of `image`, else the
            bundle's. diffusers: `height`.
        width: Width of the images in pixels, int. Default: as for `height`. diffusers: `width`.
        num_inference_steps: Number of denoising steps, int. Default: the length of `sigmas` if it
            is a list, else the bundle's. diffusers: `num_inference_steps`.
        num_images_per_prompt: Number of images per prompt, int. Default: 1. diffusers:
            `num_images_per_prompt`.
        max_sequence_length: Longest T5 prompt in tokens, int, for SD3.5 and Flux. Default: the
            bundle's. diffusers: `max_sequence_length`.
        prompt_syntax: How prompts are read: `"plain"`, or `"a1111"` for AUTOMATIC1111's weights
            (`(word:1.3)`), schedules (`[a:b:0.4]`), `AND`, `BREAK`, windows beyond 77 tokens and
            `<lora:name:0.8>`. Default: `"plain"`. diffusers: none.
        sampler: Name of the sampler, one of `SAMPLERS`, or AUTOMATIC1111's (`"DPM++ 2M Karras"`),
            ComfyUI's or diffusers' (`"EulerDiscreteScheduler"`) for it, in any case. Default: the
            bundle's. diffusers: the pipeline's scheduler.
        sigmas: Noise levels: `"default"` (the checkpoint's), `"karras"`, `"exponential"`, `"beta"`,
            `"simple"`, or a list or array, one level per step, in sigma/alpha for SDXL, sigma for
            flow models. AUTOMATIC1111's names, such as `"SGM Uniform"`, are understood too.
            Default: `"default"`. diffusers: `sigmas`, and the schedulers'
            `use_karras_sigmas` and so on.
        spacing: How timesteps are chosen from those of training: `"leading"`, `"trailing"` or
            `"linspace"` (for flow models one of the last two). Default: the checkpoint's.
            diffusers: the schedulers' `timestep_spacing`.
        sampler_options: Options of the sampler by name, floats; `SAMPLERS[name].options` lists
            them. Default: the sampler's own. diffusers: arguments of the scheduler.
        eta: Short for `sampler_options={"eta": …}`, float; 0 is accepted by every sampler.
            diffusers: `eta`.
        guidance_scale: Scale g of CFG, F_neg + g·(F_pos − F_neg), for SDXL and SD3.5, off at 1 or
            less; for Flux and LCM's UNets the embedded guidance. One float, or one per prompt or
            per image. Default: the bundle's. diffusers: `guidance_scale`, one float.
        true_cfg_scale: Scale of CFG for Flux and LCM's UNets, used if there is a negative prompt.
            One float, or one per prompt or per image. Default: 1. diffusers: `true_cfg_scale`.
        guidance_rescale: phi of Lin et al. 2023 (arXiv 2305.08891, eq. 16), 0 to 1: how far the
            guided prediction is rescaled to the standard deviation of the unguided one. Default: 0.
            diffusers: `guidance_rescale`.
        guidance_interval: Noise levels (low, high) between which CFG acts, in the unit of `sigmas`
            (Kynkäänniemi et al. 2024, arXiv 2404.07724). Default: all. diffusers: none.
        guidance_embedding: Embedded guidance instead of `guidance_scale`, for models that embed it.
            One float, or one per prompt or per image. Default: `guidance_scale`. diffusers: none.
        bypass_guidance: Runs one conditional pass, without CFG and without embedded guidance, bool.
            Default: False. diffusers: none.
        dynamic_thresholding: (threshold, percentile), such as (1.0, 0.995), applied to x_0 in every
            step, before `hook`; see `eri.dynamic_thresholding`. Default: off. diffusers: the
            schedulers' `thresholding`, `sample_max_value` and `dynamic_thresholding_ratio`.
        hook: Function x_0 -> x_0 on (B, …) float32 in the denoiser's layout, called in every step.
            Default: none. diffusers: none.
        seed: Seed of the first image, int, 0 to 2⁶⁴ − 1; image i has seed + i. Or a list of one
            seed per image. Default: a random seed. diffusers: `generator`.
        noise: `"torch"` for the noise that diffusers draws with `torch.Generator("cpu")` of the
            same seed; `"philox"`; `"brownian"`, one path per seed whatever the number of steps, for
            samplers that add noise; or a `NoiseSource`. Default: `"torch"`. diffusers: none.
        latents: Initial unit noise, float32, (B, C, h, w), or packed (B, tokens, 4·C) for Flux.
            Default: drawn from `noise`. diffusers: `latents`.
        image: Image to start from: a PIL image, or an array (H, W, 3), uint8 or floats in [0, 1];
            or a list of one per prompt or per image. Default: none. diffusers: `image` of the
            image-to-image and inpainting pipelines.
        strength: Share of the schedule that is run on `image`, more than 0, up to 1. Default: 0.6.
            diffusers: `strength`.
        mask: Where to repaint `image`: a PIL image, or an array (H, W), uint8, bool or floats in
            [0, 1]; values of one half or more are repainted. Or a list, as for `image`. Default:
            everywhere. diffusers: `mask_image`.
        mask_image: Another name of `mask`.
        overlay: Puts the pixels of `image` back where `mask` is black, and mixes them with the
            generated ones where it is grey, bool. Without it those pixels go through the VAE.
            Default: False, or True with `padding_mask_crop`. diffusers: `apply_overlay` of the
            image processor.
        padding_mask_crop: Paints only the part of `image` around `mask` with so many pixels on each
            side, int, 0 or more: cuts it out in the proportions of `width` to `height`, generates
            it in that size (default: the bundle's), and puts it back. The images have the size of
            `image`. For one image and one mask. Default: none. diffusers: `padding_mask_crop` of
            the inpainting pipelines.
        loras: Scales by the name of a loaded LoRA, for all images, or a list of such a mapping or
            None per prompt or per image. For bundles exported with `--lora-rank`. Default: none.
            diffusers: `set_adapters`, for all images.
        prompt_embeds: Embeddings instead of prompts, (B, T, D) float32, one row per prompt.
            Default: none. diffusers: `prompt_embeds`.
        pooled_prompt_embeds: Pooled embeddings that go with `prompt_embeds`, (B, P) float32.
            diffusers: `pooled_prompt_embeds`.
        negative_prompt_embeds: Embeddings instead of negative prompts, (B, T, D) float32; not with
            `negative_prompt`. diffusers: `negative_prompt_embeds`.
        negative_pooled_prompt_embeds: Pooled embeddings that go with `negative_prompt_embeds`,
            (B, P) float32. diffusers: `negative_pooled_prompt_embeds`.
        output_type: What `Result.images` is: `"pil"` for PIL images, `"np"` for an array
            (B, H, W, 3) float32 in [0, 1], `"latent"` for the latents. Default: `"pil"`. diffusers:
            `output_type`.
        config: A `SamplingConfig`, which sets several keywords. A keyword of the call overrides
            `guidance`, which overrides `ancestral`, which overrides `config`. diffusers: none.
        ancestral: An `AncestralSamplerConfig`. diffusers: none.
        guidance: A `GuidanceConfig`. diffusers: none.

    Example:
        >>> words = {"num_inference_steps": 2, "height": 32, "width": 32, "seed": 0}
        >>> pipe("a red heart", sigmas=[1.0, 0.5], **words).seeds
        (0,)
        >>> start = np.zeros((32, 32, 3), np.uint8)
        >>> pipe("a red heart", image=start, strength=0.5, **words).images[0].size
        (32, 32)
    """

    height: int | None
    width: int | None
    num_inference_steps: int | None
    num_images_per_prompt: int | None
    max_sequence_length: int | None
    prompt_syntax: str | None
    sampler: str | None
    sigmas: str | Sequence[float] | None
    spacing: str | None
    sampler_options: Mapping[str, float] | None
    eta: float | None
    guidance_scale: ArrayLike | None
    true_cfg_scale: ArrayLike | None
    guidance_rescale: float | None
    guidance_interval: tuple[float, float] | None
    guidance_embedding: ArrayLike | None
    bypass_guidance: bool | None
    dynamic_thresholding: tuple[float, float] | None
    hook: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None
    seed: int | Sequence[int] | None
    noise: NoiseSource | str | None
    latents: NDArray[Any] | None
    image: Any
    strength: float | None
    mask: Any
    mask_image: Any
    overlay: bool | None
    padding_mask_crop: int | None
    loras: Mapping[str, float] | Sequence[Mapping[str, float] | None] | None
    prompt_embeds: NDArray[Any] | None
    pooled_prompt_embeds: NDArray[Any] | None
    negative_prompt_embeds: NDArray[Any] | None
    negative_pooled_prompt_embeds: NDArray[Any] | None
    output_type: str | None
    config: SamplingConfig | None
    ancestral: AncestralSamplerConfig | None
    guidance: GuidanceConfig | None


# a later one overrides an earlier one
CONFIGS: Mapping[str, type[Any]] = {
    "config": SamplingConfig,
    "ancestral": AncestralSamplerConfig,
    "guidance": GuidanceConfig,
}


def merge_configs(words: Words) -> dict[str, Any]:
    """Returns the keywords that are not None, on top of those that configuration objects set.

    Raises `UnknownNameError` for an unknown keyword, and `UsageError` for a configuration object of
    the wrong class.
    """
    keywords = {name: value for name, value in words.items() if value is not None}
    for name in keywords:
        if name not in Words.__annotations__:
            expected = f"one of {', '.join(Words.__annotations__)}"
            raise UnknownNameError("keyword", got=short(name), expected=expected)
    configured: dict[str, object] = {}
    for name, kind in CONFIGS.items():
        config = keywords.pop(name, None)
        if config is None:
            continue
        if not isinstance(config, kind):
            raise UsageError(name, got=short(config), expected=f"a {kind.__name__}")
        configured |= config.words()
    if "mask_image" in keywords:
        if "mask" in keywords:
            raise UsageError("mask", got="mask and mask_image", expected="one of them")
        keywords["mask"] = keywords.pop("mask_image")
    return configured | keywords
