"""Turns OpenAI's fields into a request for the engine, word by word: nothing else passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eri_runtime.checks import one_of
from eri_runtime.errors import UnknownNameError, UsageError, short
from eri_runtime.images import picture_of
from eri_runtime.latents import nearest_size
from eri_runtime.serve.engine import Engine
from eri_runtime.serve.http.lora_tags import take_known_loras
from eri_runtime.serve.http.openai_fields import EditFields, Fields
from eri_runtime.serve.http.pictures import mask_of
from eri_runtime.serve.messages import PictureRequest
from eri_runtime.serve.status import Model

if TYPE_CHECKING:
    from PIL.Image import Image

RANDOM_SEED = -1


def find_model(engine: Engine, name: str | None) -> Model:
    """Returns a model by its name; default: the first. Raises `UnknownNameError`."""
    return engine.models[one_of("model", name or next(iter(engine.models)), engine.models)]


def generation(engine: Engine, fields: Fields, timeout: float | None) -> PictureRequest:
    """Returns the request for a generation.

    Args:
        engine: The engine.
        fields: The body.
        timeout: Seconds of the header, for a body without a timeout.

    Raises:
        UsageError: If two fields contradict each other, or the engine lacks a model or LoRA.
    """
    prompt, tagged = fields.prompt, dict[str, float]()
    if fields.prompt_syntax == "a1111":
        prompt, tagged = take_known_loras(prompt, engine.options.loras)
    return PictureRequest(
        model=find_model(engine, fields.model).name,
        prompt=prompt,
        negative_prompt=fields.negative_prompt,
        words={name: value for name, value in _words(fields).items() if value is not None},
        loras={**scales_of(engine, fields.loras), **tagged},
        previews=fields.previews,
        timeout=timeout if fields.timeout is None else fields.timeout,
    )


def edit(
    engine: Engine, fields: EditFields, timeout: float | None, image: Image, mask: Image | None
) -> PictureRequest:
    """Returns the request for an edit of `image`, within a mask that OpenAI's clients sent.

    Raises the errors of `generation`, and `UsageError` for a picture of more than eight bits.
    """
    request = generation(engine, fields, timeout)
    words = {**request.words, "image": picture_of("image", image, "RGB")}
    is_masked = mask is not None
    chosen = {
        "mask": None if mask is None else picture_of("mask", mask_of(mask), "L"),
        "strength": fields.strength or (1.0 if is_masked else None),
        "overlay": is_masked if fields.overlay is None else fields.overlay,
        "padding_mask_crop": fields.padding_mask_crop,
    }
    words |= {name: value for name, value in chosen.items() if value is not None}
    if "width" not in words and fields.padding_mask_crop is None:
        bundle = engine.models[request.model].bundle
        words["width"], words["height"] = nearest_size(bundle, *image.size)
    return replace(request, words=words)


def _words(fields: Fields) -> dict[str, Any]:
    """Returns the words of a call; None where the default holds."""
    width, height = _size(fields.size)
    return {
        "width": width,
        "height": height,
        "num_images_per_prompt": fields.n,
        "num_inference_steps": either(fields, "steps", "num_inference_steps"),
        "guidance_scale": either(fields, "guidance_scale", "cfg_scale"),
        "true_cfg_scale": fields.true_cfg_scale,
        "seed": None if fields.seed == RANDOM_SEED else fields.seed,
        "prompt_syntax": fields.prompt_syntax,
        "sampler": fields.sampler,
        "sigmas": fields.sigmas,
    }


def _size(size: str | None) -> tuple[int | None, int | None]:
    """Returns the width and height of `WIDTHxHEIGHT`, or nothing for `auto`."""
    if size is None or size == "auto":
        return None, None
    width, _, height = size.partition("x")
    return int(width), int(height)


def either(fields: Fields, name: str, other: str) -> Any:
    """Returns the value of a field with two names; raises `UsageError` if both differ."""
    first, second = getattr(fields, name), getattr(fields, other)
    if first is not None and second is not None and first != second:
        got = f"{first}, and {second} as {other}"
        raise UsageError(name, got=got, expected="one of them, or the same value")
    return second if first is None else first


def scales_of(engine: Engine, loras: Mapping[str, float] | list[str] | None) -> dict[str, float]:
    """Returns the scales of LoRAs by name, from a mapping or a list of `NAME` or `NAME:SCALE`.

    Raises `UnknownNameError` for a LoRA that the engine does not have.
    """
    known = engine.options.loras
    if not isinstance(loras, Mapping):
        loras = dict(_named_scale(each, known) for each in loras or ())
    for name in loras:
        if name not in known:
            expected = f"one of {', '.join(known)}" if known else "none, as this server has none"
            raise UnknownNameError("loras", got=short(name), expected=expected)
    return dict(loras)


def _named_scale(text: str, known: Mapping[str, object]) -> tuple[str, float]:
    """Returns the name and scale of `NAME` or `NAME:SCALE`."""
    name, colon, scale = text.rpartition(":")
    if text in known or not colon:
        return text, 1.0
    try:
        return name, float(scale)
    except ValueError as error:
        raise UsageError("loras", got=short(text), expected="NAME or NAME:SCALE") from error
