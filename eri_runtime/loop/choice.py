"""Picks the loop for a request: the step graph if it can run it, else the NumPy loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, get_args

from eri_runtime.bundle import ShapeRange
from eri_runtime.checks import one_of
from eri_runtime.errors import UsageError
from eri_runtime.executors import Stepper
from eri_runtime.loop.guidance_plan import GuidancePlan
from eri_runtime.loop.step_graph_loop import condition_counts, step_graph_refusal
from eri_runtime.sampling import SamplerTable

Loop = Literal["auto", "step", "numpy"]

log = logging.getLogger(__name__)


class LoopChoice:
    """Picks the loop for each request of one pipeline. Opens the step graph on first use."""

    def __init__(self, open_step: Callable[[], Stepper | None], loop: Loop) -> None:
        """Stores `loop`, as `eri_runtime.load` takes it.

        Raises `UnknownNameError` if it is none of "auto", "step" and "numpy".
        """
        one_of("loop", loop, get_args(Loop))
        self._open_step, self._loop = open_step, loop

    def choose(
        self,
        plan: GuidancePlan,
        table: SamplerTable,
        images: int,
        rows: ShapeRange,
        *,
        changed: bool,
        cached: bool = False,
    ) -> Stepper | None:
        """Returns the step graph, or None for the NumPy loop.

        `rows` is the range of the denoiser's batch. `changed` says that the request changes x_0 or
        x between steps, `cached` that it caches steps: only the NumPy loop can do that.

        Raises `UsageError` if the pipeline was opened with `loop="step"` and the step graph cannot
        run the request.
        """
        if self._loop == "numpy":
            return None
        reason = "x_0 or x is changed between steps" if changed else None
        reason = "steps are cached" if cached else reason
        reason = reason or step_graph_refusal(plan, table, images, rows)
        stepper = None if reason else self._open_step()
        if reason is None and stepper is None:
            reason = "no step graph in the bundle or the backend"
        elif stepper is not None:
            reason = stepper.refusal(images, condition_counts(plan, table, images, rows))
        if reason is None:
            return stepper
        if self._loop == "step":
            fix = "use loop='auto'"
            expected = "a request that the step graph can run"
            raise UsageError("loop='step'", got=reason, expected=expected, fix=fix)
        log.debug("the NumPy loop runs: %s", reason)
        return None
