"""Checks that a component's run fits in memory, where running out would kill the process.

`ulimit` makes an allocation fail; the engine reports that, and the pipeline backs off. A control
group or a machine without memory kills the process instead, so a run is estimated before it starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from eri_runtime.bundle import TensorSpec
from eri_runtime.errors import OutOfMemoryError
from eri_runtime.memory.available import AvailableMemory, available_memory

ULIMIT = "ulimit"  # prefix of limits that make an allocation fail and kill nothing
MARGIN = 1.3  # estimates are within a quarter of measurements, and mostly above them
OVERHEAD = 24 * 10**6  # bytes that no estimate covers: thread stacks, images, what malloc keeps
Shapes = list[tuple[str, tuple[int, ...]]]
Need = Callable[[str, Mapping[str, int]], int | None]


class Guard:
    """Checks the memory for each component and its input sizes, once while it stays open."""

    def __init__(
        self, need: Need, left: Callable[[], AvailableMemory | None] = available_memory
    ) -> None:
        """Creates a guard.

        Args:
            need: Returns the bytes that a run of a component at these sizes takes in addition to
                what is in memory already, or None if unknown.
            left: Returns how much memory is left, or None if unknown.
        """
        self._need, self._left = need, left
        self._passed: set[tuple[str, frozenset[tuple[str, int]]]] = set()
        self._last: dict[str, Shapes] = {}  # by component: those of inputs that passed

    def check(self, component: str, sizes: Mapping[str, int]) -> None:
        """Checks a run before it starts.

        Args:
            component: The component's name.
            sizes: The size of each dynamic dimension of its inputs, by name.

        Raises:
            OutOfMemoryError: If the run would probably exceed a limit that kills the process.
        """
        key = component, frozenset(sizes.items())
        if key in self._passed:
            return
        need, left = self._need(component, sizes), self._left()
        lethal = left if left is not None and not left.limit.startswith(ULIMIT) else None
        if lethal is not None and need is not None and allowed_bytes(need) > lethal.bytes:
            raise _guard_error(component, need, lethal)
        self._passed.add(key)

    def check_inputs(
        self, component: str, inputs: Mapping[str, NDArray[Any]], specs: Iterable[TensorSpec]
    ) -> None:
        """Checks a run on these inputs before it starts, as every step does.

        Args:
            component: The component's name.
            inputs: Its inputs by name.
            specs: The descriptions of its inputs.

        Raises:
            OutOfMemoryError: As `check` does.
        """
        shapes = [(name, array.shape) for name, array in inputs.items()]
        if self._last.get(component) != shapes:
            self.check(component, sizes_of(inputs, specs))
            self._last[component] = shapes

    def holds(self, needs: Iterable[int | None]) -> bool:
        """Returns whether several runs fit in memory together.

        Args:
            needs: Bytes of each run, or None if unknown, which counts as infinite.

        Returns:
            True if they fit, or if it is unknown how much memory is left.
        """
        left = self._left()
        if left is None:
            return True
        known = [math.inf if need is None else need for need in needs]
        return allowed_bytes(sum(known)) < left.bytes

    def forget(self) -> None:
        """Forgets which runs passed. Call it after components were closed or opened."""
        self._passed.clear()
        self._last.clear()


def allowed_bytes(estimate: float) -> float:
    """Returns the bytes that must be left for a run of this estimate to start."""
    return estimate * MARGIN + OVERHEAD


def _guard_error(component: str, need: int, left: AvailableMemory) -> OutOfMemoryError:
    error = OutOfMemoryError(
        component,
        got=f"{left.bytes / 1e6:,.0f} MB left ({left.limit})",
        expected=f"about {need / 1e6:,.0f} MB",
    )
    error.component, error.needed = component, need
    return error


def sizes_of(inputs: Mapping[str, NDArray[Any]], specs: Iterable[TensorSpec]) -> dict[str, int]:
    """Returns the size of each dynamic dimension of a component's inputs, by name.

    Args:
        inputs: Arrays by input name; missing inputs are skipped.
        specs: The component's inputs.
    """
    return {
        str(name): size
        for spec in specs
        if spec.name in inputs
        for name, size in zip(spec.shape, inputs[spec.name].shape, strict=False)
        if isinstance(name, str)
    }
