"""The keywords of a call, and how they are merged with configuration objects (`configs`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eri_runtime.checks import did_you_mean
from eri_runtime.errors import UnknownNameError, UsageError, short
from eri_runtime.request.configs import AncestralSamplerConfig, GuidanceConfig, SamplingConfig
from eri_runtime.request.refused_words import check_refused
from eri_runtime.sampling import NoiseSource


class Words(TypedDict, total=False):
    """The keyword arguments of a call: `pipe(prompt, **words)`.

    They have diffusers' names where diffusers has such an option. Every keyword is optional; None
    means the default.

    Attributes:
        prompt_2: Text for the second text encoder, str, or a list of one per prompt; Flux's T5.
            Default: the prompt. diffusers: `prompt_2`.
        prompt_3: Text for SD3.5's T5. Default: the prompt. diffusers: `prompt_3`.
        negative_prompt_2: Negative text for the second text encoder, like `prompt_2`. Default:
            `negative_prompt`. diffusers: `negative_prompt_2`.
        negative_prompt_3: Negative text for SD3.5's T5. Default: `negative_prompt`. diffusers:
            `negative_prompt_3`.
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
            Default: `"default"`. diffusers: `sigmas`, and the schedulers' `use_karras_sigmas` and
            so on. A flow shifts a list, as diffusers does.
        timesteps: Training timesteps to evaluate, numbers that fall; not with `sigmas`. Default:
            the schedule's. diffusers: `timesteps`, SDXL only.
        denoising_start: Share of the training timesteps after which the call begins, more than 0
            and less than 1, for `image` as another call with this `denoising_end` left it; no noise
            is added. Default: by `strength`. diffusers: `denoising_start`, SDXL only.
        denoising_end: Share of the training timesteps after which the call stops; the latents still
            have noise. Default: the end. diffusers: `denoising_end`, SDXL only.
        mu: Shift of a flow's levels, for checkpoints whose shift depends on the size. Default: by
            the size. diffusers: `mu`, SD3 only.
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
        original_size: Height and width that SDXL takes the picture to have had, two numbers.
            Default: those of the images. diffusers: `original_size`.
        crops_coords_top_left: Top and left of the crop that SDXL takes the picture to be. Default:
            (0, 0). diffusers: `crops_coords_top_left`.
        target_size: Height and width that SDXL takes the picture to have. Default: those of the
            images. diffusers: `target_size`.
        negative_original_size: `original_size` beside the negative prompt, together with
            `negative_target_size`. Default: `original_size`. diffusers: `negative_original_size`.
        negative_crops_coords_top_left: Crop beside the negative prompt, with the two negative
            sizes. Default: (0, 0) with these, else `crops_coords_top_left`. diffusers:
            `negative_crops_coords_top_left`.
        negative_target_size: `target_size` beside the negative prompt. Default: `target_size`.
            diffusers: `negative_target_size`.
        clip_skip: 0 or None; the graphs end at the last layer but one. diffusers: `clip_skip`.
        bypass_guidance: Runs one conditional pass, without CFG and without embedded guidance, bool.
            Default: False. diffusers: none.
        dynamic_thresholding: (threshold, percentile), such as (1.0, 0.995), applied to x_0 in every
            step, before `hook`; see `eri.dynamic_thresholding`. Default: off. diffusers: the
            schedulers' `thresholding`, `sample_max_value` and `dynamic_thresholding_ratio`.
        hook: Function x_0 -> x_0 on (B, …) float32 in the denoiser's layout, called in every step.
            Default: none. diffusers: none.
        step_cache: `"first_block"` to skip most of the denoiser in steps that change little, which
            is faster and changes the images (lossy); `Step.computed` says which steps were
            computed. Default: every step is computed. diffusers: `FirstBlockCacheConfig`.
        step_cache_threshold: Relative change of the first block's residual below which a step is
            skipped, float; 0 skips none. Default: 0.1. diffusers: `threshold` of that config.
        seed: Seed of the first image, int, 0 to 2⁶⁴ − 1; image i has seed + i. Or a list of one
            seed per image. Default: a random seed. diffusers: `generator`.
        generator: A `torch.Generator`, a NumPy `Generator`, or a seed, which stands for a CPU
            generator of torch with it; or a list of one per image. One generator draws for all
            images in turn. It is left advanced, and `seed` and `noise` must be absent. Default:
            `seed`. diffusers: `generator`.
        noise: `"torch"` for the noise that diffusers draws with `torch.Generator("cpu")` of the
            same seed; `"philox"`; `"brownian"`, one path per seed whatever the number of steps, for
            samplers that add noise; or a `NoiseSource`. Default: `"torch"`. diffusers: none.
        latents: Initial unit noise, float32, (B, C, h, w), or packed (B, tokens, 4·C) for Flux.
            With `image` these are what the loop starts from, as in diffusers: with a mask noise
            alone; without one the latents themselves, and the image is not read. Default: drawn
            from `noise`. diffusers: `latents`.
        image: Image to start from: a PIL image, or an array (H, W, 3), uint8 or floats in [0, 1];
            or a list of one per prompt or per image; or a torch tensor (B, 3, H, W) in [0, 1] or
            [−1, 1]; or latents (B, C, h, w), or packed ones of Flux, of an earlier call. Default:
            none.
            diffusers: `image` of the image-to-image and inpainting pipelines.
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
        cross_attention_kwargs: `{"scale": s}`, a factor of the scales of all LoRAs of the call; not
            with LoRAs that are merged. Default: 1. diffusers: `cross_attention_kwargs`.
        joint_attention_kwargs: As `cross_attention_kwargs`. diffusers: `joint_attention_kwargs`.
        prompt_embeds: Embeddings instead of prompts, (B, T, D) float32, one row per prompt.
            Default: none. diffusers: `prompt_embeds`.
        pooled_prompt_embeds: Pooled embeddings that go with `prompt_embeds`, (B, P) float32.
            diffusers: `pooled_prompt_embeds`.
        negative_prompt_embeds: Embeddings instead of negative prompts, (B, T, D) float32; not with
            `negative_prompt`. diffusers: `negative_prompt_embeds`.
        negative_pooled_prompt_embeds: Pooled embeddings that go with `negative_prompt_embeds`,
            (B, P) float32. diffusers: `negative_pooled_prompt_embeds`.
        output_type: What `Result.images` is: `"pil"` for PIL images, `"np"` for an array
            (B, H, W, 3) float32 in [0, 1], `"pt"` for a torch tensor (B, 3, H, W) if torch is
            imported, `"latent"` for the latents. Default: `"pil"`. diffusers: `output_type`.
        return_dict: True or False, bool. A `Result` is diffusers' tuple too: `result[0]`. Default:
            True. diffusers: `return_dict`.
        callback_on_step_end: Function (pipe, step, timestep, arrays) -> arrays, called after every
            step. It may change the arrays it asked for, set `pipe._guidance_scale`, or stop the
            call with `pipe._interrupt = True`. The arrays are torch tensors if the call has a
            generator, latents or embeddings of torch, or `output_type="pt"`; else NumPy arrays.
            Default: none. diffusers: `callback_on_step_end`.
        callback_on_step_end_tensor_inputs: Names of these arrays: `latents`, `prompt_embeds` and
            the pooled ones, a list. Default: `["latents"]`. diffusers: as here.
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

    prompt_2: str | Sequence[str] | None
    prompt_3: str | Sequence[str] | None
    negative_prompt_2: str | Sequence[str] | None
    negative_prompt_3: str | Sequence[str] | None
    height: int | None
    width: int | None
    num_inference_steps: int | None
    num_images_per_prompt: int | None
    max_sequence_length: int | None
    prompt_syntax: str | None
    sampler: str | None
    sigmas: str | Sequence[float] | None
    timesteps: Sequence[float] | None
    denoising_start: float | None
    denoising_end: float | None
    mu: float | None
    spacing: str | None
    sampler_options: Mapping[str, float] | None
    eta: float | None
    guidance_scale: ArrayLike | None
    true_cfg_scale: ArrayLike | None
    guidance_rescale: float | None
    guidance_interval: tuple[float, float] | None
    guidance_embedding: ArrayLike | None
    original_size: Sequence[float] | None
    crops_coords_top_left: Sequence[float] | None
    target_size: Sequence[float] | None
    negative_original_size: Sequence[float] | None
    negative_crops_coords_top_left: Sequence[float] | None
    negative_target_size: Sequence[float] | None
    clip_skip: int | None
    bypass_guidance: bool | None
    dynamic_thresholding: tuple[float, float] | None
    hook: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None
    step_cache: str | None
    step_cache_threshold: float | None
    seed: int | Sequence[int] | None
    generator: Any
    noise: NoiseSource | str | None
    latents: NDArray[Any] | None
    image: Any
    strength: float | None
    mask: Any
    mask_image: Any
    overlay: bool | None
    padding_mask_crop: int | None
    loras: Mapping[str, float] | Sequence[Mapping[str, float] | None] | None
    cross_attention_kwargs: Mapping[str, float] | None
    joint_attention_kwargs: Mapping[str, float] | None
    prompt_embeds: NDArray[Any] | None
    pooled_prompt_embeds: NDArray[Any] | None
    negative_prompt_embeds: NDArray[Any] | None
    negative_pooled_prompt_embeds: NDArray[Any] | None
    output_type: str | None
    return_dict: bool | None
    callback_on_step_end: Callable[..., Any] | None
    callback_on_step_end_tensor_inputs: Sequence[str] | None
    config: SamplingConfig | None
    ancestral: AncestralSamplerConfig | None
    guidance: GuidanceConfig | None


# a later one overrides an earlier one
CONFIGS: Mapping[str, type[Any]] = {
    "config": SamplingConfig,
    "ancestral": AncestralSamplerConfig,
    "guidance": GuidanceConfig,
}


# what other programs call a keyword, where its letters do not tell
ELSEWHERE: Mapping[str, str] = {
    "batch_size": "num_images_per_prompt",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "denoise": "strength",
    "denoising_strength": "strength",
    "init_image": "image",
    "n_iter": "num_images_per_prompt",
    "negative": "negative_prompt",
    "num_steps": "num_inference_steps",
    "sampler_name": "sampler",
    "steps": "num_inference_steps",
}


def merge_configs(words: Words) -> dict[str, Any]:
    """Returns the keywords that are not None, on top of those that configuration objects set.

    Raises `UnknownNameError` for an unknown keyword, and `UsageError` for one that has no meaning
    here and for a configuration object of the wrong class.
    """
    keywords = {name: value for name, value in words.items() if value is not None}
    check_refused(keywords)
    for name in keywords:
        if name not in Words.__annotations__:
            names = ("prompt", "negative_prompt", "on_step", *Words.__annotations__)
            fix = did_you_mean(ELSEWHERE.get(name, name), names)
            expected = "a keyword of a call, which eri_runtime.request.Words lists"
            raise UnknownNameError("keyword", got=short(name), expected=expected, fix=fix)
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
