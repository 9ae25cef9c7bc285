"""Validates the arguments of a call one by one; each function raises `UsageError` for a bad one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import Bundle, LevelSpec, Spacing
from eri_runtime.checks import (
    boolean,
    finite,
    float32,
    integer,
    items,
    mapping,
    one_of,
    text,
    to_numpy,
)
from eri_runtime.errors import SizeError, UnknownNameError, UsageError, short
from eri_runtime.latents import DECODER, ENCODER, check_size, latent_shape, pack
from eri_runtime.loop import identity
from eri_runtime.request.start_images import from_tensors, image_size, is_latents
from eri_runtime.sampling import (
    NO_EMBEDDING,
    Guidance,
    NoiseName,
    NoiseSource,
    Sampler,
    SigmaName,
    check_fraction,
    check_interval,
    check_limits,
    check_spacing,
    dynamic_thresholding,
    per_image,
    scheduler_clipping,
)
from eri_runtime.text import (
    EMPTY_PROMPT,
    Condition,
    Prompt,
    PromptLike,
    Syntax,
    check_encoders,
    condition_from_embeds,
    make_prompts,
)

OutputType = Literal["pil", "np", "pt", "latent"]
Keywords = Mapping[str, Any]
Hook = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def check_sigmas(words: Keywords) -> SigmaName | Sequence[float]:
    """Returns the noise levels of a call: a name, or a list of any iterable's or array's numbers.

    The name, and whether the levels can be used, is checked when the schedule is made.
    """
    sigmas: Any = words.get("sigmas", "default")
    if hasattr(sigmas, "dtype"):
        sigmas = to_numpy("sigmas", sigmas).tolist()
    if isinstance(sigmas, str) or not isinstance(sigmas, Iterable):
        return cast(SigmaName, sigmas)
    return list(sigmas)


def check_steps(bundle: Bundle, words: Keywords) -> int:
    """Returns the number of steps; default: that of `sigmas` or `timesteps`, or the bundle's.

    Its range is checked when the schedule is made.
    """
    sigmas, default = words.get("sigmas", "default"), bundle.defaults.num_inference_steps
    if isinstance(sigmas, Iterable) and not isinstance(sigmas, str):
        default = sum(1 for level in sigmas if level != 0)
    if "timesteps" in words:
        default = len(words["timesteps"])
        named = words.get("num_inference_steps", default)
        if named != default:
            expected = f"{default}, the number of timesteps"
            raise UsageError("num_inference_steps", got=short(named), expected=expected)
    steps: int = words.get("num_inference_steps", default)
    return steps


def check_sampler_options(bundle: Bundle, sampler: Sampler, words: Keywords) -> dict[str, float]:
    """Returns all options of the sampler; ignores an `eta` of 0 if it has no such option.

    Default: those of the checkpoint's scheduler, if this is its sampler.
    """
    options = words.get("sampler_options", {})
    if not isinstance(options, Mapping):
        raise UsageError("sampler_options", got=short(options), expected="a mapping of options")
    own = bundle.defaults.sampler_options if sampler.name == bundle.defaults.sampler else {}
    chosen = {**own, **options}
    if (eta := words.get("eta")) is not None:
        eta = finite("eta", eta)
        if eta != 0 or "eta" in sampler.options:
            chosen["eta"] = eta
    return sampler.checked(chosen)


def default_levels(bundle: Bundle, sampler: Sampler, words: Keywords) -> LevelSpec | None:
    """Returns the levels of the checkpoint's scheduler, unless the call names other ones.

    Those of another sampler are other ones.

    A call's `sigmas="default"` means them too.
    """
    sigmas, defaults = words.get("sigmas", "default"), bundle.defaults
    default = isinstance(sigmas, str) and sigmas == "default" and "timesteps" not in words
    return defaults.levels if default and sampler.name == defaults.sampler else None


def check_call_spacing(
    bundle: Bundle, sampler: Sampler, levels: LevelSpec | None, words: Keywords
) -> Spacing | None:
    """Returns the spacing of the timesteps that the call names, or None."""
    spacing, sigmas = words.get("spacing"), words.get("sigmas", "default")
    if spacing is not None and not isinstance(sigmas, str):
        raise UsageError("spacing", got="spacing and a list of sigmas", expected="one of them")
    distilled = levels is None and sampler.original_steps is not None
    kind = bundle.schedule.kind
    return check_spacing(spacing, kind, levels, distilled=distilled and kind == "vp")


def check_guidance(
    bundle: Bundle, words: Keywords, count: int, prompts: int, *, has_negative: bool
) -> Guidance:
    """Returns the guidance of each image.

    `guidance_scale` is the scale of CFG, except for Flux and a UNet of LCM: there it is the
    embedded guidance, and CFG's scale is `true_cfg_scale` if there is a negative prompt.
    """

    def numbers(name: str, default: float) -> NDArray[np.float32]:
        return per_image(name, words.get(name, default), count, prompts)

    guidance_scale = numbers("guidance_scale", bundle.defaults.guidance_scale)
    true_cfg_scale, no_cfg = numbers("true_cfg_scale", 1.0), np.ones_like(guidance_scale)
    if bundle.family == "flux" or bundle.guidance_embedding:
        scale = true_cfg_scale if has_negative else no_cfg
    else:
        scale = guidance_scale
    embedding = words.get("guidance_embedding")
    embedded = (
        guidance_scale
        if embedding is None
        else per_image("guidance_embedding", embedding, count, prompts)
    )
    if boolean("bypass_guidance", words.get("bypass_guidance", False)):
        scale, embedded = no_cfg, np.full_like(guidance_scale, NO_EMBEDDING)
    return Guidance(
        scale=scale,
        embedded=embedded,
        rescale=check_fraction("guidance_rescale", words.get("guidance_rescale", 0.0)),
        interval=check_interval(words.get("guidance_interval")),
    )


def check_hook(bundle: Bundle, sampler: Sampler, words: Keywords) -> Hook:
    """Returns the function called on x_0 in every step: thresholding, then the caller's hook.

    Default: the clipping of the checkpoint's scheduler, if it has one and this is its sampler.
    """
    hook: Hook = words.get("hook", identity)
    limits = words.get("dynamic_thresholding")
    if not callable(hook):
        raise UsageError("hook", got=short(hook), expected="a function x_0 -> x_0")
    if limits is None:
        is_default = sampler.name == bundle.defaults.sampler
        own = scheduler_clipping(bundle.defaults) if is_default else None
        if own is None or hook is identity:
            return own or hook
        return lambda denoised: hook(own(denoised))
    if not isinstance(limits, Sequence) or len(limits) != 2:
        expected = "(threshold, percentile), such as (1.0, 0.995)"
        raise UsageError("dynamic_thresholding", got=short(limits), expected=expected)
    check_limits(*limits)
    return lambda denoised: hook(dynamic_thresholding(denoised, *limits))


def check_encodable(bundle: Bundle, image: Any) -> Any:
    """Returns `image`, torch tensors of it as arrays.

    Raises `UsageError` if there is one and the bundle cannot encode it.
    """
    image = from_tensors("image", image)
    latents = is_latents(image, bundle.latents)
    if image is not None and not latents and ENCODER not in bundle.components:
        raise UsageError(
            "image",
            got=f"a bundle without {ENCODER}",
            expected="the VAE's encoder",
            fix="export again with `--vae`",
        )
    return image


def check_embeds(words: Keywords, embeds: str, pooled: str) -> Condition | None:
    """Returns the embeddings given under these two keywords, or None."""
    return condition_from_embeds(embeds, words.get(embeds), words.get(pooled))


def check_output_type(bundle: Bundle, name: str) -> OutputType:
    """Returns `name`; raises `UsageError` if it is unknown or needs a decoder the bundle lacks."""
    one_of("output_type", name, get_args(OutputType))
    if name == "pt" and "torch" not in sys.modules:
        got, fix = "'pt', and torch is not imported", "import torch first, or ask for 'np'"
        raise UsageError("output_type", got=got, expected="pil, np or latent", fix=fix)
    if name != "latent" and DECODER not in bundle.components:
        got, fix = f"{name!r} of a bundle without {DECODER}", "or export again with `--vae`"
        raise UsageError("output_type", got=got, expected="latent", fix=fix)
    return cast(OutputType, name)


def check_image_size(bundle: Bundle, words: Keywords) -> tuple[int, int]:
    """Returns height and width; default: the image's size, or the bundle's.

    With `padding_mask_crop` a part of the image is generated, so its size is not the default.
    """
    default = bundle.defaults.height, bundle.defaults.width
    image, cropped = words.get("image"), words.get("padding_mask_crop") is not None
    if image is not None and not cropped:
        default = image_size(image, bundle.latents) or default
    height = integer("height", words.get("height", default[0]), 0)
    width = integer("width", words.get("width", default[1]), 0)
    check_size(bundle, height, width)
    return height, width


def check_prompts(
    bundle: Bundle,
    prompt: PromptLike | Sequence[PromptLike] | None,
    condition: Condition | None,
    syntax: Syntax,
) -> tuple[Prompt, ...]:
    """Returns the prompts; if `condition` has their embeddings instead, an empty one for each."""
    if condition is not None:
        if prompt is not None:
            raise UsageError("prompt", got="prompt and prompt_embeds", expected="one of them")
        return (EMPTY_PROMPT,) * len(condition.embeds)
    prompts = make_prompts(prompt, syntax)
    check_encoders(bundle)
    return prompts


def check_negative_prompts(
    prompt: str | Sequence[str] | None, count: int, condition: Condition | None
) -> tuple[str, ...] | None:
    """Returns one negative prompt per prompt, or None; `condition` has their embeddings instead."""
    if prompt is None:
        return None
    if condition is not None:
        got = "negative_prompt and negative_prompt_embeds"
        raise UsageError("negative_prompt", got=got, expected="one of them")
    expected = "a string, or a list of one per prompt"
    listed = [prompt] * count if isinstance(prompt, str) else prompt
    prompts = tuple(items("negative_prompt", listed, expected))
    for each in prompts:
        text("negative_prompt", each)
    if len(prompts) != count:
        raise UsageError("negative_prompt", got=f"{len(prompts)} texts", expected=f"1 or {count}")
    return prompts


def check_latents(
    bundle: Bundle, latents: NDArray[Any] | None, count: int, height: int, width: int
) -> NDArray[np.float32] | None:
    """Returns the initial unit noise in the denoiser's layout: (B, C, h, w), packed for Flux.

    Any finite numbers become float32; raises `SizeError` for another shape.
    """
    if latents is None:
        return None
    shape = (count, *latent_shape(bundle.latents, height, width))
    latents = float32("latents", to_numpy("latents", latents))
    if latents.shape == shape:
        return pack(bundle, latents)
    shape = pack(bundle, np.broadcast_to(np.float32(0), shape)).shape
    if latents.shape != shape:
        raise SizeError("latents", got=latents.shape, expected=shape)
    return latents


def check_lora_scale(words: Keywords) -> float:
    """Returns the factor of all LoRAs' scales, `{"scale": …}` of the attention's arguments.

    Raises `UsageError` for anything else in these, which goes to code that a graph does not have.
    """
    scale = 1.0
    for name in ("cross_attention_kwargs", "joint_attention_kwargs"):
        given = mapping(name, words.get(name, {}), "a mapping with the key scale")
        for key, value in given.items():
            if key != "scale":
                expected = "scale, the only one that a graph knows"
                raise UnknownNameError(name, got=short(key), expected=expected)
            scale = finite(f'{name}["scale"]', value)
    return scale


def check_noise_source(source: Any) -> NoiseSource | NoiseName:
    """Returns a noise source or its name; raises `UnknownNameError` for anything else."""
    named = isinstance(source, str) and source in get_args(NoiseName)
    if not callable(source) and not named:
        expected = f"one of {', '.join(get_args(NoiseName))}, or a function (draw, shape) -> array"
        raise UnknownNameError("noise", got=short(source), expected=expected)
    return cast(NoiseSource | NoiseName, source)
