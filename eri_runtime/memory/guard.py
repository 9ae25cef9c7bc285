"""Looks before a component is run whether there is memory for it, where its lack would kill.

`ulimit` refuses memory, which an engine says and a pipeline backs off from. A control group or a
machine without memory kills the process instead, so what a run will take is estimated first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from numpy.typing import NDArray

from eri_runtime.errors import OutOfMemoryError
from eri_runtime.memory.left import Left, memory_left
from eri_runtime.spec import TensorSpec

REFUSES = "ulimit"  # limits whose names begin so
MARGIN = 1.3  # estimates are within a quarter of what is measured, and mostly above it
BESIDE = 24 * 10**6  # bytes that no estimate knows: stacks of threads, pictures, what malloc keeps
Need = Callable[[str, Mapping[str, int]], int | None]


class Guard:
    """Asks once for each component and its sizes, as long as it stays open."""

    def __init__(self, need: Need, left: Callable[[], Left | None] = memory_left) -> None:
        """`need` is the bytes that a run of a component takes beyond what is held, if known."""
        self._need, self._left = need, left
        self._passed: set[tuple[str, frozenset[tuple[str, int]]]] = set()

    def check(self, component: str, sizes: Mapping[str, int]) -> None:
        """Raise `OutOfMemoryError` where a run of these sizes would end the process."""
        key = component, frozenset(sizes.items())
        if key in self._passed:
            return
        need, left = self._need(component, sizes), self._left()
        kills = left if left is not None and not left.limit.startswith(REFUSES) else None
        if kills is not None and need is not None and at_most(need) > kills.bytes:
            raise _too_little(component, need, kills)
        self._passed.add(key)

    def holds(self, needs: Iterable[int | None]) -> bool:
        """Whether there is memory for all of these together, or nobody can say what is left."""
        left = self._left()
        if left is None:
            return True
        known = [math.inf if need is None else need for need in needs]
        return at_most(sum(known)) < left.bytes

    def forget(self) -> None:
        """Ask anew: components were closed, or others opened."""
        self._passed.clear()


def at_most(estimate: float) -> float:
    """The bytes that something of this estimate may take."""
    return estimate * MARGIN + BESIDE


def _too_little(component: str, need: int, left: Left) -> OutOfMemoryError:
    error = OutOfMemoryError(
        component,
        got=f"{left.bytes / 1e6:,.0f} MB left ({left.limit})",
        expected=f"about {need / 1e6:,.0f} MB",
    )
    error.component, error.needed = component, need
    return error


def sizes_of(inputs: Mapping[str, NDArray], specs: Iterable[TensorSpec]) -> dict[str, int]:
    """The size of every dynamic dimension, by its name, of a component's inputs."""
    return {
        str(name): size
        for spec in specs
        if spec.name in inputs
        for name, size in zip(spec.shape, inputs[spec.name].shape, strict=False)
        if isinstance(name, str)
    }
