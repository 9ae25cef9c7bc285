"""What an engine checks before it accepts a request: model, LoRAs, limits, words, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from eri_runtime.bundle import Bundle
from eri_runtime.checks import finite, integer, mapping, one_of, real
from eri_runtime.errors import OutOfMemoryError, UsageError
from eri_runtime.executors import Settings
from eri_runtime.latents import VaeMode
from eri_runtime.memory import TILE, Mode, available_memory, estimate_peak
from eri_runtime.request import Request, Words, make_request, request_table
from eri_runtime.serve.messages import PictureRequest
from eri_runtime.serve.options import EngineOptions, Limits

MOST_PREVIEWS = 100


def admit(
    bundles: Mapping[str, Bundle], options: EngineOptions, request: PictureRequest
) -> tuple[PictureRequest, Request]:
    """Checks a request.

    Returns:
        The request with its model's name and its seeds, so that it makes the same pictures however
        often it begins; and what the bundle makes of it.

    Raises:
        UnknownNameError: For a model or LoRA that the engine does not have.
        UsageError: If the request is invalid, or larger than the limits.
        OutOfMemoryError: If the request would not fit into what is left of the memory.
    """
    model = one_of("model", request.model or next(iter(bundles)), bundles)
    loras = mapping("loras", request.loras, "scales by name")
    for name, scale in loras.items():
        one_of("loras", name, options.loras)
        finite(f"loras: {name}", scale)
    integer("previews", request.previews, 0, MOST_PREVIEWS)
    if request.timeout is not None:
        real("timeout", request.timeout, "seconds, more than 0", lambda value: value > 0)
    words: Words = {**request.words, "output_type": "pil"}  # type: ignore[typeddict-item]
    checked = make_request(bundles[model], request.prompt, request.negative_prompt, words)
    check_limits(options.limits, checked)
    request_table(bundles[model], checked)  # raises for levels that the model does not have
    check_memory(bundles[model], options, checked)
    seeds = {**request.words, "seed": list(checked.seeds)}
    return replace(request, model=model, words=seeds, loras=dict(loras)), checked


def check_limits(limits: Limits, request: Request) -> None:
    """Raises `UsageError` if a request is larger than the limits."""
    texts = [text for prompt in request.prompts for text, _ in prompt.parts]
    texts += request.negative_prompts or ()
    sizes = {
        "size": (request.height * request.width, limits.pixels, "pixels"),
        "num_inference_steps": (request.steps, limits.steps, "steps"),
        "images in one request": (request.batch, limits.pictures, "images"),
        "prompt": (max(map(len, texts), default=0), limits.prompt, "characters"),
    }
    for name, (size, most, unit) in sizes.items():
        if size > most:
            raise UsageError(name, got=f"{size} {unit}", expected=f"at most {most}")


def check_memory(bundle: Bundle, options: EngineOptions, request: Request) -> None:
    """Raises `OutOfMemoryError` if a request would not fit into what is left, even in parts."""
    if options.backend not in ("cpu", "openvino", "openvino:bf16"):
        return  # a GPU's memory is known to the worker alone
    left = available_memory()
    mode = Mode(rows=1, vae=VaeMode(images=1, tile=TILE), offloaded=True, low_memory=True)
    estimate = estimate_peak(
        bundle, options.backend, Settings(), mode, request.height, request.width, request.batch
    )
    if left is None or estimate.peak is None or estimate.peak <= left.bytes:
        return
    error = OutOfMemoryError(
        "request",
        got=f"about {estimate.peak >> 20} MiB needed in any mode",
        expected=f"at most {left.bytes >> 20} MiB, {left.limit}",
        fix="ask for smaller or fewer pictures",
    )
    error.needed = estimate.peak
    raise error
