"""Which loop runs a request: the step graph where it serves, NumPy's everywhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, get_args

from eri_runtime.errors import UnknownNameError, UsageError
from eri_runtime.executors.stepper import Stepper
from eri_runtime.guided import Guided
from eri_runtime.spec import ShapeRange
from eri_runtime.stepping import conditions, obstacle
from eri_runtime.table import SamplerTable

Loop = Literal["auto", "step", "numpy"]

log = logging.getLogger(__name__)


class Loops:
    """The choice for one pipeline, whose step graph is opened when it is first needed."""

    def __init__(self, open_step: Callable[[], Stepper | None], loop: Loop) -> None:
        """`loop` as `eri_runtime.load` takes it; raises `UnknownNameError` for another."""
        if loop not in get_args(Loop):
            expected = f"one of {', '.join(get_args(Loop))}"
            raise UnknownNameError("loop", got=repr(loop), expected=expected)
        self._open_step, self._loop = open_step, loop

    def choose(
        self, guided: Guided, table: SamplerTable, images: int, rows: ShapeRange, *, changed: bool
    ) -> Stepper | None:
        """The step graph, or None for NumPy; `changed` are x_0 or x between the steps.

        Raises `UsageError` where nothing but the step graph was to run.
        """
        if self._loop == "numpy":
            return None
        reason = "x_0 or x is changed between steps" if changed else None
        reason = reason or obstacle(guided, table, images, rows)
        stepper = None if reason else self._open_step()
        if reason is None and stepper is None:
            reason = "no step graph in the bundle or the backend"
        elif stepper is not None:
            reason = stepper.obstacle(images, conditions(guided, table, images, rows))
        if reason is None:
            return stepper
        if self._loop == "step":
            fix = "leave `loop` at auto"
            raise UsageError("loop='step'", got=reason, expected="all in one graph", fix=fix)
        log.debug("the NumPy loop runs: %s", reason)
        return None
