"""What an engine checks before it accepts a request: model, LoRAs, limits, words, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from eri_runtime.bundle import Bundle
from eri_runtime.checks import finite, integer, mapping, one_of, real
from eri_runtime.errors import OutOfMemoryError, UsageError
from eri_runtime.executors import Settings
from eri_runtime.latents import VaeMode
from eri_runtime.memory import (
    ON_HOST,
    TILE,
    AvailableMemory,
    Mode,
    available_memory,
    estimate_peak,
)
from eri_runtime.request import Request, Words, make_request, request_schedule
from eri_runtime.serve.messages import PictureRequest
from eri_runtime.serve.options import EngineOptions, Limits
from eri_runtime.serve.parts import COUNT, parts_of

Admitted = tuple[PictureRequest, Request]

MOST_PREVIEWS = 100
# words that act on objects of the caller's process
IN_PROCESS = frozenset(("generator", "callback_on_step_end"))


def admit(
    bundles: Mapping[str, Bundle], options: EngineOptions, request: PictureRequest
) -> list[Admitted]:
    """Checks a request.

    Returns:
        The request, or several that make its pictures in parts: each with its model's name and its
        seeds, so that it makes the same pictures however often it begins, and what the bundle
        makes of it.

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
    mapping("words", request.words, "keywords of a call")
    _check_served(request.words)
    named = replace(request, model=model, loras=dict(loras))
    count = request.words.get(COUNT)
    if isinstance(count, int):
        check_pictures(options.limits, count)  # before so many parts are made
    parts = [_admit_part(bundles[model], options, each) for each in parts_of(bundles[model], named)]
    check_pictures(options.limits, sum(checked.batch for _, checked in parts))
    return parts


def _check_served(words: Mapping[str, object]) -> None:
    """Raises `UsageError` for a word that acts on an object of the caller's process."""
    for name in sorted(IN_PROCESS & words.keys()):
        if words[name] is not None:
            fix = "use seed=" if name == "generator" else "read the submission's steps"
            got, expected = "it in a served request", "a call of a pipeline"
            raise UsageError(name, got=got, expected=expected, fix=fix)


def _admit_part(bundle: Bundle, options: EngineOptions, request: PictureRequest) -> Admitted:
    """Checks a request that the bundle can make at once."""
    words: Words = {**request.words, "output_type": "pil"}  # type: ignore[typeddict-item]
    checked = make_request(bundle, request.prompt, request.negative_prompt, words)
    check_limits(options.limits, checked)
    request_schedule(bundle, checked)  # raises for levels that the model does not have
    check_memory(bundle, options, checked)
    seeds = {**request.words, "seed": list(checked.seeds)}
    return replace(request, words=seeds), checked


def check_pictures(limits: Limits, count: int) -> None:
    """Raises `UsageError` if a request is for more pictures than the limit."""
    if count > limits.pictures:
        got = f"{count} images"
        raise UsageError("images in one request", got=got, expected=f"at most {limits.pictures}")


def check_limits(limits: Limits, request: Request) -> None:
    """Raises `UsageError` if a request is larger than the limits."""
    sizes = {
        "size": (request.height * request.width, limits.pixels, "pixels"),
        "num_inference_steps": (request.steps, limits.steps, "steps"),
        "prompt": (max(map(len, request.texts), default=0), limits.prompt, "characters"),
    }
    for name, (size, most, unit) in sizes.items():
        if size > most:
            raise UsageError(name, got=f"{size} {unit}", expected=f"at most {most}")


def check_memory(bundle: Bundle, options: EngineOptions, request: Request) -> None:
    """Raises `OutOfMemoryError` if a request would not fit into what is left, even in parts."""
    if options.backend not in ON_HOST:
        return  # a GPU's memory is known to the worker alone
    left = available_memory()
    mode = Mode(rows=1, vae=VaeMode(images=1, tile=TILE), offloaded=True, low_memory=True)
    estimate = estimate_peak(
        bundle, options.backend, Settings(), mode, request.height, request.width, request.batch
    )
    if left is None or estimate.peak is None or estimate.peak <= left.bytes:
        return
    raise _too_large(estimate.peak, left)


def _too_large(peak: int, left: AvailableMemory) -> OutOfMemoryError:
    """Returns the error of a request that would not fit."""
    error = OutOfMemoryError(
        "request",
        got=f"about {peak >> 20} MiB needed in any mode",
        expected=f"at most {left.bytes >> 20} MiB, {left.limit}",
        fix="ask for smaller or fewer pictures",
    )
    error.needed = peak
    return error
