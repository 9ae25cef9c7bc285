"""Encodes the prompts of a request into conditions for the denoiser."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import Bundle
from eri_runtime.errors import UsageError
from eri_runtime.loop import Array, GuidancePlan, Inputs
from eri_runtime.request import Request
from eri_runtime.sampling import Clock
from eri_runtime.text import (
    Condition,
    Encode,
    check_encoders,
    condition_inputs,
    for_encoders,
    prompt_columns,
    shared_inputs,
)


def encode_conditions(
    bundle: Bundle, encode: Encode, request: Request, clock: Clock
) -> tuple[GuidancePlan, Inputs]:
    """Returns the conditions of a request, and the denoiser's inputs without a batch axis."""
    size = (request.height, request.width)
    positives, weights = _positives(encode, request)
    shared = shared_inputs(bundle, *size, positives[0].embeds.shape[1])

    micro = request.micro

    def inputs(k: int) -> dict[str, Array]:
        condition = positives[k - 1] if k else _negative(bundle, encode, request, positives[0])
        numbers = None if micro is None else micro.positive if k else micro.negative
        return condition_inputs(bundle, condition, *size, request.guidance.embedded, numbers)

    return GuidancePlan(inputs, weights, request.guidance, clock), shared


def plain_conditions(
    bundle: Bundle, encode: Encode, request: Request
) -> tuple[Condition, Condition | None]:
    """Returns the condition of the prompts and, with CFG, that of the negative prompts, (B, …).

    Raises `UsageError` for weighted prompts, which have several.
    """
    if not all(prompt.is_plain for prompt in request.prompts):
        name, got = "callback_on_step_end_tensor_inputs", "embeddings of weighted prompts"
        raise UsageError(name, got=got, expected="latents")
    (positive,), _ = _positives(encode, request)
    if not (request.guidance.scale > 1).any():
        return positive, None
    return positive, _negative(bundle, encode, request, positive)


def _positives(encode: Encode, request: Request) -> tuple[list[Condition], NDArray[np.float64]]:
    """Returns P positive conditions, B rows each, and their weights (P, B).

    P is the number of texts of the longest weighted prompt, 1 for plain prompts.
    """
    repeats = request.images_per_prompt
    if request.positive is not None:
        return [request.positive.repeat(repeats)], np.ones((1, request.batch))
    length = request.max_sequence_length
    texts, weights = zip(*prompt_columns(request.prompts), strict=True)
    conditions = [encode(column, length).repeat(repeats) for column in texts]
    return conditions, np.stack(weights).repeat(repeats, axis=1)


def _negative(bundle: Bundle, encode: Encode, request: Request, positive: Condition) -> Condition:
    """Returns the negative condition; raises `UsageError` if its shape is not the positive's."""
    negative = _unconditional(bundle, encode, request, positive)
    if negative.embeds.shape != positive.embeds.shape:
        expected = f"{positive.embeds.shape}, the positive prompt's"
        raise UsageError("negative_prompt_embeds", got=negative.embeds.shape, expected=expected)
    return negative


def _unconditional(
    bundle: Bundle, encode: Encode, request: Request, positive: Condition
) -> Condition:
    """Returns the embeddings given, zeros (SDXL without a negative prompt), or encoded prompts."""
    if request.negative is not None:
        return request.negative.repeat(request.images_per_prompt)
    if request.negative_prompts is None and bundle.zero_empty_negative:
        return positive.zeros()
    check_encoders(bundle, "negative_prompt")
    prompts = request.negative_prompts or ("",) * len(request.prompts)
    others = request.negative_others or ((),) * len(prompts)
    texts = tuple(map(for_encoders, prompts, others))
    return encode(texts, request.max_sequence_length).repeat(request.images_per_prompt)
