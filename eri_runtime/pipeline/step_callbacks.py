"""Calls `callback_on_step_end` between the steps, and stops a call that is interrupted.

A step can be resumed. So after a callback that changed something the loop begins anew from that
step, with what the callback returned; any loop can run the steps, also a step graph.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import cached_property
from math import isfinite
from threading import Lock
from typing import Any
from weakref import WeakSet

import numpy as np

from eri_runtime.checks import real
from eri_runtime.loop import Step
from eri_runtime.pipeline.step_arrays import (
    arrays_of,
    changed_step,
    changes_in,
    given_arrays,
    with_embeddings,
)
from eri_runtime.request import Request, StepEnd, request_table, scheduler_scale
from eri_runtime.sampling import SamplerTable
from eri_runtime.text import Encode

Run = Callable[[Request, Step | None], Iterator[Step]]


class RunningCalls:
    """The calls of one pipeline that are in progress, which `pipe._interrupt = True` stops."""

    def __init__(self) -> None:
        self._calls: WeakSet[CallInProgress] = WeakSet()
        self._lock = Lock()

    def add(self, call: CallInProgress) -> None:
        """Adds a call; it leaves by itself when nothing refers to it."""
        with self._lock:
            self._calls.add(call)

    def interrupt(self) -> None:
        """Stops every call after the step that it is in."""
        with self._lock:
            for call in self._calls:
                call._interrupt = True


class CallInProgress:
    """What a callback gets as its pipeline: one call, with the names of diffusers' attributes.

    Everything else is the pipeline's.

    Attributes:
        request: The request, as the callback has changed it so far.
    """

    def __init__(self, pipe: Any, request: Request) -> None:
        self._pipe, self.request = pipe, request
        self._interrupt = False
        self._embeds = pipe.bundle.family == "flux" or pipe.bundle.guidance_embedding
        guidance = request.guidance
        self._guidance_scale = float((guidance.embedded if self._embeds else guidance.scale)[0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    @cached_property
    def sampler_table(self) -> SamplerTable:
        """The sampler's table, which no callback changes."""
        return request_table(self._pipe.bundle, self.request)

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the call."""
        return len(self.sampler_table)

    @property
    def _num_timesteps(self) -> int:
        """Another name of `num_timesteps`, which diffusers' own callbacks read."""
        return self.num_timesteps

    def scale_after(self, step: int) -> float:
        """Returns what the latents after a step are multiplied by for diffusers' scale."""
        return scheduler_scale(self._pipe.bundle, self.request, self.sampler_table.points[step + 1])

    @property
    def interrupt(self) -> bool:
        """Whether the call stops after this step."""
        return self._interrupt

    @property
    def guidance_scale(self) -> float:
        """Scale of CFG, or Flux's embedded guidance, of the steps to come."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the steps to come have a negative prompt."""
        return bool((self.request.guidance.scale > 1).any())

    def with_guidance(self, before: float) -> Request:
        """Returns the request with the scale that the callback set, for all images.

        `before` is the scale before the callback. Raises `UsageError` for what is no number.
        """
        scale = real("pipe._guidance_scale", self._guidance_scale, "a finite number", isfinite)
        if scale == before:
            return self.request
        name, guidance = "embedded" if self._embeds else "scale", self.request.guidance
        values = np.full_like(getattr(guidance, name), scale)
        return replace(self.request, guidance=replace(guidance, **{name: values}))


def run_with_callbacks(
    call: CallInProgress, encode: Encode, run: Run, start: Step | None
) -> Iterator[Step]:
    """Returns the steps of a call, or those after `start`, with its callback between them.

    `run` starts the loop; it is called for the first time at once.
    """
    return _steps(call, encode, run, run(call.request, start))


def _steps(
    call: CallInProgress, encode: Encode, run: Run, steps: Iterator[Step]
) -> Generator[Step]:
    """Yields the steps, and begins the loop anew after a callback that changed something."""
    step_end = call.request.step_end
    while (step := next(steps, None)) is not None:
        if step_end is not None:
            request, changed = _after_step(call, step_end, encode, step)
            if request is not call.request or changed is not step:
                if isinstance(steps, Generator):
                    steps.close()
                call.request, step = request, changed.on_host()
                steps = iter(()) if step.index + 1 == step.total else run(request, step)
        yield step
        if call.interrupt:
            return


def _after_step(
    call: CallInProgress, step_end: StepEnd, encode: Encode, step: Step
) -> tuple[Request, Step]:
    """Calls the callback; returns request and step with its changes, or themselves."""
    bundle, scale = call.bundle, call.guidance_scale
    factor = call.scale_after(step.index)
    latents = step.x * np.float32(factor)
    arrays = arrays_of(bundle, encode, call.request, latents, step_end.inputs)
    given = given_arrays(arrays, torch=step_end.torch)
    answer = step_end.function(call, step.index, call.sampler_table.points[step.index].t, given)
    changes = changes_in(bundle, given if answer is None else answer, arrays)
    changed = changed_step(step, changes.pop("latents", None), factor)
    request = call.with_guidance(scale)
    if changes:
        request = with_embeddings(bundle, encode, request, changes)
    return request, changed
