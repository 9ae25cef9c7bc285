"""The arrays that a callback between the steps gets, and what it changed in them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eri_runtime.bundle import Bundle
from eri_runtime.checks import float32, to_numpy
from eri_runtime.errors import SizeError, UsageError, short
from eri_runtime.loop import Array, HostLatents, Step
from eri_runtime.pipeline.prompt_conditions import plain_conditions
from eri_runtime.request import MICRO, MicroConditions, Request, tensor_inputs
from eri_runtime.text import EMPTY_PROMPT, Condition, Encode


def arrays_of(
    bundle: Bundle, encode: Encode, request: Request, latents: Array, names: Sequence[str]
) -> dict[str, Array]:
    """Returns arrays of a step by diffusers' names.

    `latents` are (B, …) in the denoiser's layout and the scheduler's scale; embeddings are the
    negative prompts' and then the prompts', (2·B, …), or (B, …) without CFG. Raises `UsageError`
    for embeddings of weighted prompts.
    """
    if set(names) <= {"latents"}:
        return dict.fromkeys(names, latents)
    positive, negative = plain_conditions(bundle, encode, request)
    pair = positive if negative is None else Condition.stack([negative, positive])
    pooled = tensor_inputs(bundle.family)[2]
    known = {"latents": latents, "prompt_embeds": pair.embeds, pooled: pair.pooled}
    if MICRO in names:
        known[MICRO] = _time_ids(request, with_negative=negative is not None)
    return {name: known[name] for name in names}


def _time_ids(request: Request, *, with_negative: bool) -> Array:
    """Returns SDXL's micro-conditioning of every row, the negative prompts' first."""
    micro = _micro(request)
    rows = [micro.negative] * request.batch * with_negative + [micro.positive] * request.batch
    return np.array(rows, np.float32)


def _micro(request: Request) -> MicroConditions:
    """Returns the micro-conditioning of a request, or that of an uncropped picture."""
    size = (float(request.height), float(request.width))
    whole = (*size, 0.0, 0.0, *size)
    return request.micro or MicroConditions(whole, whole)


def _with_time_ids(request: Request, array: Array) -> Request:
    """Returns a request with other micro-conditioning, the same for all its images.

    Rows of the prompts alone leave the negative one as it is. Raises `SizeError` for other rows.
    """
    parts = np.split(array, 2) if len(array) == 2 * request.batch else [array]
    alike = all((part == part[:1]).all() for part in parts)
    if array.shape[1:] != (6,) or len(parts[-1]) != request.batch or not alike:
        expected = f"{request.batch} or {2 * request.batch} rows of 6 numbers, alike"
        raise SizeError(MICRO, got=f"{array.shape}", expected=expected)
    micro = replace(_micro(request), positive=tuple(map(float, parts[-1][0])))
    if len(parts) == 2:
        micro = replace(micro, negative=tuple(map(float, parts[0][0])))
    return replace(request, micro=micro)


def given_arrays(arrays: Mapping[str, Array], *, torch: bool) -> dict[str, Any]:
    """Returns copies of arrays, as torch tensors if `torch`, which the caller has imported."""
    copies = {name: array.copy() for name, array in arrays.items()}
    if not torch:
        return copies
    return {name: sys.modules["torch"].from_numpy(array) for name, array in copies.items()}


def changes_in(bundle: Bundle, answer: Any, before: Mapping[str, Array]) -> dict[str, Array]:
    """Returns the arrays of a callback's answer that differ from those before it.

    Raises `UsageError` for what is no mapping of arrays and `NonFiniteError` for NaN or Inf. Other
    names are ignored, as in diffusers.
    """
    if not isinstance(answer, Mapping):
        expected = "a mapping of arrays by name, or None"
        name = "what callback_on_step_end returns"
        raise UsageError(name, got=short(answer), expected=expected)
    names = [name for name in tensor_inputs(bundle.family) if name in answer]
    arrays = {name: float32(name, to_numpy(name, answer[name])) for name in names}
    return {
        name: array
        for name, array in arrays.items()
        if name not in before or not np.array_equal(array, before[name])
    }


def changed_step(step: Step, latents: Array | None, scale: float) -> Step:
    """Returns the step with other latents, or itself for None.

    `scale` is their scale over the denoiser's. Raises `SizeError` for another shape.
    """
    if latents is None:
        return step
    if latents.shape != step.x.shape:
        raise SizeError("latents", got=latents.shape, expected=step.x.shape)
    x = latents / np.float32(scale)
    held = HostLatents(x=x, denoised=step.denoised, remembered=step.remembered)
    return replace(step, latents=held)


def with_embeddings(
    bundle: Bundle, encode: Encode, request: Request, changes: Mapping[str, Array]
) -> Request:
    """Returns a request with the embeddings that a callback gave, for the steps to come.

    Embeddings of the prompts alone leave the negative ones as they are. Raises `SizeError` for
    another number of rows.
    """
    positive, negative = plain_conditions(bundle, encode, request)
    pooled = tensor_inputs(bundle.family)[2]
    for name, array in changes.items():
        if name == MICRO:
            request = _with_time_ids(request, array)
            continue
        field = "pooled" if name == pooled else "embeds"
        rows = np.split(array, 2) if len(array) == 2 * request.batch else [array]
        if len(rows[-1]) != request.batch:
            expected = f"{request.batch} or {2 * request.batch} rows"
            raise SizeError(name, got=f"{len(array)} rows", expected=expected)
        positive = replace(positive, **{field: rows[-1]})
        if negative is not None and len(rows) == 2:
            negative = replace(negative, **{field: rows[0]})
    return replace(
        request,
        prompts=(EMPTY_PROMPT,) * request.batch,
        negative_prompts=None,
        negative_others=None,
        positive=positive,
        negative=negative,
        images_per_prompt=1,
    )
