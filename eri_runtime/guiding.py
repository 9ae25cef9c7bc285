"""What guides the images of a request: its prompts as conditions of the denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from eri_runtime.conditioning import (
    Condition,
    check_encoders,
    condition_inputs,
    shared_inputs,
)
from eri_runtime.denoise import Array
from eri_runtime.errors import UsageError
from eri_runtime.guided import Guided, Inputs
from eri_runtime.prompts import columns
from eri_runtime.request import Request
from eri_runtime.schedule import Clock
from eri_runtime.spec import Bundle

Encode = Callable[[Sequence[str], int], Condition]  # prompts and the length of their tokens


def guide(bundle: Bundle, encode: Encode, request: Request, clock: Clock) -> tuple[Guided, Inputs]:
    """The conditions of a request, and the inputs that all of their rows share."""
    size = (request.height, request.width)
    positives, weights = _positives(encode, request)
    shared = shared_inputs(bundle, *size, positives[0].embeds.shape[1])

    def inputs(k: int) -> dict[str, Array]:
        condition = positives[k - 1] if k else _negative(bundle, encode, request, positives[0])
        return condition_inputs(bundle, condition, *size, request.guidance.embedded)

    return Guided(inputs, weights, request.guidance, clock), shared


def _positives(encode: Encode, request: Request) -> tuple[list[Condition], NDArray[np.float64]]:
    """P conditions (B, …) and their weights (P, B): the texts of every prompt."""
    each = request.images_per_prompt
    if request.positive is not None:
        return [request.positive.repeat(each)], np.ones((1, request.batch))
    length = request.max_sequence_length
    texts, weights = zip(*columns(request.prompts), strict=True)
    conditions = [encode(column, length).repeat(each) for column in texts]
    return conditions, np.stack(weights).repeat(each, axis=1)


def _negative(bundle: Bundle, encode: Encode, request: Request, positive: Condition) -> Condition:
    """The negative condition, of the shape of a positive one."""
    negative = _unconditional(bundle, encode, request, positive)
    if negative.embeds.shape != positive.embeds.shape:
        expected = f"{positive.embeds.shape}, the positive prompt's"
        raise UsageError("negative_prompt_embeds", got=negative.embeds.shape, expected=expected)
    return negative


def _unconditional(
    bundle: Bundle, encode: Encode, request: Request, positive: Condition
) -> Condition:
    if request.negative is not None:
        return request.negative.repeat(request.images_per_prompt)
    if request.negative_prompts is None and bundle.zero_empty_negative:
        return positive.zeros()
    check_encoders(bundle, "negative_prompt")
    prompts = request.negative_prompts or ("",) * len(request.prompts)
    return encode(prompts, request.max_sequence_length).repeat(request.images_per_prompt)
