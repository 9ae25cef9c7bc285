"""Encodes the prompts of a request into conditions for the denoiser."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import Bundle
from eri_runtime.errors import UsageError
from eri_runtime.loop import Array, GuidancePlan, Inputs
from eri_runtime.pipeline.prompt_stages import Column, PromptStages, plain_stages, prompt_stages
from eri_runtime.request import Request
from eri_runtime.sampling import SamplerTable
from eri_runtime.text import (
    Condition,
    Encode,
    check_encoders,
    condition_inputs,
    prompt_columns,
    shared_inputs,
)


def encode_conditions(
    bundle: Bundle, encode: Encode, request: Request, table: SamplerTable
) -> tuple[GuidancePlan, Inputs]:
    """Returns the conditions of a request, and the denoiser's inputs without a batch axis."""
    size = (request.height, request.width)
    conditions = _Conditions(bundle, encode, request, prompt_stages(bundle, encode, request, table))
    weights = _weights(request)
    shared = shared_inputs(bundle, *size, conditions.positive(0, 1).embeds.shape[1])

    micro = request.micro

    def inputs(phase: int, k: int) -> dict[str, Array]:
        condition = conditions.positive(phase, k) if k else conditions.negative(phase)
        numbers = None if micro is None else micro.positive if k else micro.negative
        return condition_inputs(bundle, condition, *size, request.guidance.embedded, numbers)

    phases = conditions.stages.phases
    return GuidancePlan(inputs, weights, request.guidance, table.points.clock, phases), shared


def plain_conditions(
    bundle: Bundle, encode: Encode, request: Request
) -> tuple[Condition, Condition | None]:
    """Returns the condition of the prompts and, with CFG, that of the negative prompts, (B, …).

    Raises `UsageError` for weighted prompts, which have several.
    """
    if request.syntax != "plain" or not all(prompt.is_plain for prompt in request.prompts):
        name, got = "callback_on_step_end_tensor_inputs", "embeddings of weighted prompts"
        raise UsageError(name, got=got, expected="latents")
    conditions = _Conditions(bundle, encode, request, plain_stages(request))
    positive = conditions.positive(0, 1)
    return positive, conditions.negative(0) if (request.guidance.scale > 1).any() else None


def _weights(request: Request) -> NDArray[np.float64]:
    """Returns the weights (P, B) of the positive conditions.

    P is the number of texts of the longest weighted prompt, 1 for plain prompts.
    """
    if request.positive is not None:
        return np.ones((1, request.batch))
    _, weights = zip(*prompt_columns(request.prompts), strict=True)
    return np.stack(weights).repeat(request.images_per_prompt, axis=1)


class _Conditions:
    """The conditions of one request; texts that several phases have are encoded once.

    Attributes:
        stages: The texts of each phase.
    """

    def __init__(
        self, bundle: Bundle, encode: Encode, request: Request, stages: PromptStages
    ) -> None:
        self._bundle, self._request, self.stages = bundle, request, stages
        self._encode, self._known = encode, dict[Column, Condition]()

    def _encoded(self, texts: Column) -> Condition:
        """Returns the condition of texts, which are encoded once."""
        if texts not in self._known:
            condition = self._encode(texts, self._request.max_sequence_length)
            self._known[texts] = condition.repeat(self._request.images_per_prompt)
        return self._known[texts]

    def positive(self, phase: int, k: int) -> Condition:
        """Returns positive condition k, from 1, of a phase, (B, …)."""
        if self._request.positive is not None:
            return self._request.positive.repeat(self._request.images_per_prompt)
        return self._encoded(self.stages.texts[phase][k])

    def negative(self, phase: int) -> Condition:
        """Returns a phase's negative condition (B, …).

        Raises `UsageError` if its shape is not the positive's.
        """
        positive = self.positive(phase, 1)
        negative = self._unconditional(phase, positive)
        if negative.embeds.shape != positive.embeds.shape:
            expected = f"{positive.embeds.shape}, the positive prompt's"
            raise UsageError("negative_prompt_embeds", got=negative.embeds.shape, expected=expected)
        return negative

    def _unconditional(self, phase: int, positive: Condition) -> Condition:
        """Returns given embeddings, zeros (SDXL without a negative prompt), or encoded texts."""
        request = self._request
        if request.negative is not None:
            return request.negative.repeat(request.images_per_prompt)
        if request.negative_prompts is None and self._bundle.zero_empty_negative:
            return positive.zeros()
        check_encoders(self._bundle, "negative_prompt")
        return self._encoded(self.stages.texts[phase][0])
