"""The noise levels and the sampler table of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from eri_runtime.bundle import Bundle, ScheduleSpec
from eri_runtime.latents import token_count
from eri_runtime.request.image_to_image import slice_schedule
from eri_runtime.request.latent_scale import scheduler_scale
from eri_runtime.request.request import Request
from eri_runtime.request.schedule_part import at_timesteps, run_from, run_to
from eri_runtime.sampling import (
    SamplerTable,
    Schedule,
    SigmaName,
    make_table,
    shifted_levels,
    with_spacing,
)


def request_schedule(bundle: Bundle, request: Request) -> Schedule:
    """Returns a request's noise levels; for image to image, those after `strength`.

    Raises `UsageError` if the number of steps, `sigmas`, `strength` or a share of the schedule do
    not fit the model.
    """
    part, schedule = request.part, _whole(bundle, request)
    if part.start is not None:
        schedule = run_from(schedule, part.start)
    elif request.edit is not None:
        schedule = slice_schedule(schedule, request.edit)
    return schedule if part.end is None else run_to(schedule, part.end)


def noise_scale(bundle: Bundle, request: Request) -> float:
    """Returns what diffusers multiplies a caller's noise by, whatever step the loop starts at.

    That is the scale of the whole schedule's first latents, in the denoiser's scale at the first
    step that is run.
    """
    whole, begin = _whole(bundle, request), request_schedule(bundle, request)[0]
    table = make_table(request.sampler, whole, bundle.schedule, options=request.options)
    own = scheduler_scale(bundle, request, whole[0]) / scheduler_scale(bundle, request, begin)
    return table.scale * own


def _whole(bundle: Bundle, request: Request) -> Schedule:
    """Returns all noise levels of a request, before any are left out."""
    tokens = token_count(bundle.latents, request.height, request.width)
    spec = with_spacing(bundle.schedule, request.spacing)
    if request.part.mu is not None:
        spec = replace(spec, base_shift=request.part.mu, max_shift=request.part.mu)
    sampler, levels = request.sampler, request.levels
    if request.part.timesteps is not None:
        plain = sampler.schedule(spec, request.steps, tokens)
        return at_timesteps(plain, request.part.timesteps)
    return sampler.schedule(spec, request.steps, tokens, _levels(spec, request, tokens), levels)


def _levels(spec: ScheduleSpec, request: Request, tokens: int) -> SigmaName | Sequence[float]:
    """Returns the levels of a call; a flow shifts those of a list, as diffusers does."""
    if isinstance(request.sigmas, str) or spec.kind != "flow":
        return request.sigmas
    return shifted_levels(spec, request.sigmas, tokens)


def request_table(bundle: Bundle, request: Request) -> SamplerTable:
    """Returns the sampler's coefficients for a request; raises as `request_schedule` does."""
    schedule = request_schedule(bundle, request)
    return make_table(request.sampler, schedule, bundle.schedule, options=request.options)
