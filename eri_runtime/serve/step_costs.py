"""What a step of a group of requests costs, learned from the steps that were made.

A group is what can share an engine call. Its step of n rows takes `fixed + n·row` seconds: on a
large GPU nearly all of it is fixed, on two cores nearly nothing is.
"""

from __future__ import annotations

from collections.abc import Hashable
from statistics import fmean, linear_regression
from typing import NamedTuple

Group = Hashable
LOWER, HIGHER = 0.5, 0.1  # weight of a new time: what else the machine does only makes it longer
FIRST = 0.1  # seconds that a row is thought to take before any was timed
MOST = 256  # groups that are remembered


class Cost(NamedTuple):
    """Seconds of a step: `fixed + rows·row`."""

    fixed: float
    row: float

    def of(self, rows: int) -> float:
        """Returns the seconds of a step of so many rows."""
        return self.fixed + rows * self.row


class _Times:
    """How long a group's steps took, by their rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._tried = set[int]()

    def add(self, rows: int, seconds: float) -> None:
        """Takes a time; the first with these rows may have opened or compiled something."""
        if rows in self._tried:
            before = self._seconds.get(rows, seconds)
            weight = LOWER if seconds < before else HIGHER
            self._seconds[rows] = before + weight * (seconds - before)
        self._tried.add(rows)

    def line(self) -> Cost | None:
        """Returns the least-squares line; half is fixed if all steps had the same rows."""
        if not self._seconds:
            return None
        rows, seconds = list(self._seconds), list(self._seconds.values())
        if len(rows) == 1:
            return Cost(seconds[0] / 2, seconds[0] / 2 / rows[0])
        row, _ = linear_regression(rows, seconds)
        row = min(max(row, 0.0), fmean(seconds) / fmean(rows))  # no part is negative
        return Cost(max(0.0, fmean(seconds) - row * fmean(rows)), row)


class StepCosts:
    """The costs of the groups that made steps last."""

    def __init__(self) -> None:
        self._times: dict[Group, _Times] = {}  # the least recently used first
        self._costs: dict[Group, Cost] = {}

    def cost(self, group: Group) -> Cost:
        """Returns what a step of a group should cost: that of the cheapest if none was timed."""
        if group in self._costs:
            return self._costs[group]
        return min(self._costs.values(), default=Cost(0.0, FIRST), key=lambda each: each.of(1))

    def made(self, group: Group, rows: int, seconds: float) -> None:
        """Notes that a step of so many rows took so long."""
        times = self._times.pop(group) if group in self._times else _Times()
        self._times[group] = times
        times.add(rows, seconds)
        cost = times.line()
        if cost is not None:
            self._costs[group] = cost
        if len(self._times) > MOST:
            oldest = next(iter(self._times))
            del self._times[oldest]
            self._costs.pop(oldest, None)
