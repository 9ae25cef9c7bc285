"""Turns a body of `/sdapi/v1` into a request for the engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf
from typing import TYPE_CHECKING, Any

from eri_runtime.checks import integer
from eri_runtime.errors import UsageError
from eri_runtime.sampling import SAMPLERS, Sampler, choose_sampler, choose_scheduler
from eri_runtime.serve.http.a1111_models import ImageToImage, TextToImage
from eri_runtime.serve.http.lora_tags import take_known_loras
from eri_runtime.serve.http.pictures import read_base64
from eri_runtime.serve.messages import PictureRequest
from eri_runtime.serve.status import Model

if TYPE_CHECKING:
    from PIL.Image import Image

PREVIEWS = 10  # at most; they cost little beside a step
MOST_BLUR = 64  # pixels, as in AUTOMATIC1111's own form
NOISE_OPTIONS = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")


def text_request(body: TextToImage, model: Model, loras: Collection[str]) -> PictureRequest:
    """Returns the request for the engine.

    Args:
        body: The client's body.
        model: The model to use.
        loras: Names of the server's LoRAs.

    Raises:
        UnknownNameError: For an unknown sampler, scheduler or LoRA.
        UsageError: For a bad LoRA tag or seed.
    """
    prompt, weights = take_known_loras(body.prompt, loras)
    return PictureRequest(
        model=model.name,
        prompt=prompt,
        negative_prompt=body.negative_prompt or None,
        words=_words(body, model),
        loras=weights,
        previews=PREVIEWS,
        timeout=body.timeout,
    )


def _words(body: TextToImage, model: Model) -> dict[str, Any]:
    """Returns the keywords of a call of `Pipeline`, without those that have their default."""
    words = {
        "prompt_syntax": "a1111",
        "width": body.width,
        "height": body.height,
        "num_inference_steps": body.steps,
        "num_images_per_prompt": body.pictures,
        "seed": None if body.seed == -1 else body.seed,
        **_guidance(body, model),
        **_sampling(body, model),
    }
    return {name: value for name, value in words.items() if value is not None}


def _guidance(body: TextToImage, model: Model) -> dict[str, float | None]:
    """Returns the guidance: models that embed it have a scale of CFG beside it, as in Forge."""
    if model.bundle.guidance_embedding:
        return {"guidance_scale": body.distilled_cfg_scale, "true_cfg_scale": body.cfg_scale}
    return {"guidance_scale": body.cfg_scale}


def _sampling(body: TextToImage, model: Model) -> dict[str, Any]:
    """Returns the sampler, its options and its noise levels; none if the body names no sampler."""
    label, scheduler = body.sampler_name or body.sampler_index, None
    sampler = SAMPLERS[model.bundle.defaults.sampler]
    words: dict[str, Any] = {}
    if label:
        sampler, scheduler = choose_sampler(label, model.bundle.schedule.kind, "sampler_name")
        words["sampler"] = sampler.name
    if scheduler is None and body.scheduler:
        scheduler = choose_scheduler(body.scheduler)
    if scheduler is not None:
        words |= scheduler.keywords
    if options := _sampler_options(body, sampler):
        words["sampler_options"] = options
    return words


def _sampler_options(body: TextToImage, sampler: Sampler) -> dict[str, float]:
    """Returns the options of the body that this sampler has; an `s_tmax` of 0 is no limit."""
    given: Mapping[str, float | None] = {
        name: getattr(body, name) for name in NOISE_OPTIONS if name in sampler.options
    }
    options = {name: value for name, value in given.items() if value is not None}
    if options.get("s_tmax") == 0:
        options["s_tmax"] = inf
    return options


def image_words(body: ImageToImage, most_pixels: int, most_pictures: int) -> dict[str, Any]:
    """Returns the keywords for image to image, with the pictures read: slow for an event loop.

    Args:
        body: The client's body.
        most_pixels: Most pixels of a picture.
        most_pictures: Most pictures to start from; more are refused before one is read.

    Raises:
        UsageError: For something that is no picture, or too large, for too many, and for a bad blur
            or padding.
    """
    images = _init_images(body, most_pixels, most_pictures)
    words: dict[str, Any] = {
        "image": images if len(images) > 1 else images[0],
        "strength": body.denoising_strength,
    }
    if not body.mask:
        return words
    mask = read_base64("mask", body.mask, most_pixels)
    words |= {"mask": _fitted(_repainted(mask, body), body), "overlay": True}
    if body.inpaint_full_res:
        padding = integer("inpaint_full_res_padding", body.inpaint_full_res_padding, 0)
        words["padding_mask_crop"] = padding
    return words


def _init_images(body: ImageToImage, most_pixels: int, most_pictures: int) -> list[Image]:
    """Returns the pictures to start from, read one after the other."""
    if len(body.init_images) > most_pictures:
        got = f"{len(body.init_images)} pictures"
        raise UsageError("init_images", got=got, expected=f"at most {most_pictures}")
    images = []
    for i, text in enumerate(body.init_images):
        image = read_base64(f"init_images[{i}]", text, most_pixels)
        images.append(_fitted(image.convert("RGB"), body))
    return images


def _fitted(image: Image, body: ImageToImage) -> Image:
    """Cuts a picture to the proportions of the size, if the body's `resize_mode` is 1."""
    from PIL import ImageOps

    if body.resize_mode != 1 or not body.width or not body.height:
        return image
    scale = min(image.width / body.width, image.height / body.height)
    width, height = (max(1, round(side * scale)) for side in (body.width, body.height))
    return ImageOps.fit(image, (width, height))


def _repainted(mask: Image, body: ImageToImage) -> Image:
    """Returns eri's mask, white where to repaint: inverted and blurred as the body says."""
    from PIL import ImageFilter, ImageOps

    transparent = mask.mode == "RGBA" and mask.getchannel("A").getextrema() != (255, 255)
    grey = mask.getchannel("A") if transparent else mask.convert("L")
    if body.inpainting_mask_invert:
        grey = ImageOps.invert(grey)
    blur = integer("mask_blur", body.mask_blur, 0, MOST_BLUR)
    return grey.filter(ImageFilter.GaussianBlur(blur)) if blur else grey
