"""The keywords of a call, and the user's configuration objects that stand for several of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from numpy.typing import ArrayLike, NDArray

from eri_runtime.configs import AncestralSamplerConfig, GuidanceConfig, SamplingConfig
from eri_runtime.errors import UnknownNameError, UsageError, short
from eri_runtime.noise import NoiseSource


class Words(TypedDict, total=False):
    """The keywords of a call, named as in diffusers; one left out, or None, is the default.

    **Size and steps.** `height`, `width`, `num_inference_steps`, `guidance_scale`, `sampler` and
    `max_sequence_length` default to the bundle's. `sigmas` respaces the noise levels: `default`,
    `karras`, `exponential`, `beta`, `simple`, or a list of levels, one a step, in k-diffusion's
    unit (sigma/alpha for SDXL, sigma for a flow). `sampler_options` are the
    algorithm's own (`samplers.SAMPLERS[name].options`), `eta` is short for one of them.

    **Guidance.** `guidance_scale` is CFG for SDXL and SD3.5, off at 1 or less, and the embedded
    guidance for Flux, whose CFG is `true_cfg_scale` (1) with a negative prompt; each is one number,
    one a prompt or one an image. `guidance_rescale` (0) is Lin et al.'s phi; `guidance_interval`
    (low, high) the noise levels between which CFG acts, in the unit of `sigmas`.
    `guidance_embedding` tells a denoiser that embeds guidance another number than `guidance_scale`,
    and `bypass_guidance` leaves out that embedding and CFG. `dynamic_thresholding` (threshold,
    percentile) is done to x_0 in every step, before `hook`, a function x_0 -> x_0 of your own.

    **Noise.** Image i has seed `seed + i`, or `seed[i]`; no seed draws one. `noise` is `torch`
    (what diffusers draws with `torch.Generator("cpu")` of that seed), `philox`, `brownian` (one
    path a seed whatever the number of steps, for samplers that add noise), or a `NoiseSource`.
    `latents` is unit noise (B, C, h, w), or packed for Flux.

    **Image to image.** `image` is a PIL image, an array (H, W, 3) of uint8 or of floats in [0, 1],
    or one for each prompt or image; `height` and `width` default to its size. `strength` (0.6) is
    how much of the schedule is run on it. `mask` (or `mask_image`) is white where the image is to
    be made anew: a PIL image, or (H, W) of uint8, bool or floats; half and more is white.

    **LoRAs.** Of a bundle that takes them as inputs, `loras` is a mapping of names to scales for
    all images, or a sequence of one such mapping, or None, for each prompt or image.

    **The rest.** Embeddings are (B, T, D) and pooled (B, P). `output_type` is `pil`, `np`
    ((B, H, W, 3) in [0, 1]) or `latent`. `config`, `ancestral` and `guidance` are objects that
    stand for several words; a word given beside them counts.
    """

    height: int | None
    width: int | None
    num_inference_steps: int | None
    num_images_per_prompt: int | None
    max_sequence_length: int | None
    sampler: str | None
    sigmas: str | Sequence[float] | None
    sampler_options: Mapping[str, float] | None
    eta: float | None
    guidance_scale: ArrayLike | None
    true_cfg_scale: ArrayLike | None
    guidance_rescale: float | None
    guidance_interval: tuple[float, float] | None
    guidance_embedding: ArrayLike | None
    bypass_guidance: bool | None
    dynamic_thresholding: tuple[float, float] | None
    hook: Callable[[NDArray], NDArray] | None
    seed: int | Sequence[int] | None
    noise: NoiseSource | str | None
    latents: NDArray | None
    image: Any
    strength: float | None
    mask: Any
    mask_image: Any
    loras: Mapping[str, float] | Sequence[Mapping[str, float] | None] | None
    prompt_embeds: NDArray | None
    pooled_prompt_embeds: NDArray | None
    negative_prompt_embeds: NDArray | None
    negative_pooled_prompt_embeds: NDArray | None
    output_type: str | None
    config: SamplingConfig | None
    ancestral: AncestralSamplerConfig | None
    guidance: GuidanceConfig | None


# later ones count before earlier ones
CONFIGS: Mapping[str, type[Any]] = {
    "config": SamplingConfig,
    "ancestral": AncestralSamplerConfig,
    "guidance": GuidanceConfig,
}


def complete(words: Words) -> dict[str, Any]:
    """The words that were given, those of configuration objects beneath them.

    Raises `UnknownNameError` for a word that is none, `UsageError` for an object of another kind.
    """
    given = {name: value for name, value in words.items() if value is not None}
    for word in given:
        if word not in Words.__annotations__:
            expected = f"one of {', '.join(Words.__annotations__)}"
            raise UnknownNameError("keyword", got=repr(word), expected=expected)
    beneath: dict[str, object] = {}
    for name, kind in CONFIGS.items():
        config = given.pop(name, None)
        if config is None:
            continue
        if not isinstance(config, kind):
            raise UsageError(name, got=short(config), expected=f"a {kind.__name__}")
        beneath |= config.words()
    if "mask_image" in given:
        if "mask" in given:
            raise UsageError("mask", got="mask and mask_image", expected="one of them")
        given["mask"] = given.pop("mask_image")
    return beneath | given
