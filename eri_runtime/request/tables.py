"""The noise levels and the sampler table of a request."""

from __future__ import annotations

from eri_runtime.bundle import Bundle
from eri_runtime.latents import token_count
from eri_runtime.request.image_to_image import slice_schedule
from eri_runtime.request.request import Request
from eri_runtime.sampling import SamplerTable, Schedule, make_table, with_spacing


def request_schedule(bundle: Bundle, request: Request) -> Schedule:
    """Returns a request's noise levels; for image to image, those after `strength`.

    Raises `UsageError` if the number of steps, `sigmas` or `strength` do not fit the model.
    """
    tokens = token_count(bundle.latents, request.height, request.width)
    spec = with_spacing(bundle.schedule, request.spacing)
    whole = request.sampler.schedule(spec, request.steps, tokens, request.sigmas, request.levels)
    return whole if request.edit is None else slice_schedule(whole, request.edit)


def request_table(bundle: Bundle, request: Request) -> SamplerTable:
    """Returns the sampler's coefficients for a request; raises as `request_schedule` does."""
    schedule = request_schedule(bundle, request)
    return make_table(request.sampler, schedule, bundle.schedule, options=request.options)
