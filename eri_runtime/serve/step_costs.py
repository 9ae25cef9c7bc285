"""What a step of a group of requests costs, learned from the steps that were made.

A group is what can share an engine call. Its step of n rows takes `fixed + n·row` seconds: on a
large GPU nearly all of it is fixed, on two cores nearly nothing is.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from math import inf
from statistics import fmean, linear_regression
from typing import NamedTuple

Group = Hashable
LOWER, HIGHER = 0.5, 0.1  # weight of a new time: what else the machine does only makes it longer
FIRST = 0.1  # seconds that a row is thought to take before any was timed
RECENT = 100  # steps of a group for which the times of its larger steps count
MOST = 256  # groups that are remembered


class Cost(NamedTuple):
    """Seconds of a step: `fixed + rows·row`."""

    fixed: float
    row: float

    def of(self, rows: int) -> float:
        """Returns the seconds of a step of so many rows."""
        return self.fixed + rows * self.row


class _Times:
    """How long a group's steps took lately, by their rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._last: dict[int, int] = {}  # the number of the step that had these rows last
        self._steps = 0

    def add(self, rows: int, seconds: float) -> None:
        """Takes a time; the first with these rows may have opened or compiled something."""
        self._steps += 1
        if rows in self._last:
            before = self._seconds.get(rows, seconds)
            weight = LOWER if seconds < before else HIGHER
            self._seconds[rows] = before + weight * (seconds - before)
        self._last[rows] = self._steps

    def line(self) -> Cost | None:
        """Returns the least-squares line; half is fixed if all steps had the same rows."""
        seconds = _plausible(self._recent())
        if not seconds:
            return None
        if len(seconds) == 1:
            ((rows, time),) = seconds.items()
            return Cost(time / 2, time / 2 / rows)
        row, _ = linear_regression(list(seconds), list(seconds.values()))
        mean, mean_rows = fmean(seconds.values()), fmean(seconds)
        row = min(max(row, 0.0), mean / mean_rows)  # no part is negative
        return Cost(max(0.0, mean - row * mean_rows), row)

    def _recent(self) -> dict[int, float]:
        """Returns the times by their rows, fewest first, but for larger steps of long ago.

        A time that was too long once would else keep steps from having as many rows for ever, and
        never be mended.
        """
        oldest = self._steps - RECENT
        most = max((rows for rows, last in self._last.items() if last > oldest), default=0)
        return {rows: self._seconds[rows] for rows in sorted(self._seconds) if rows <= most}


def _plausible(seconds: Mapping[int, float]) -> dict[int, float]:
    """Returns times, the fewest rows first, shortened to what others show to be possible.

    A step takes no longer than one of more rows, and for each row no longer than one of fewer.
    """
    found, least, a_row = dict(seconds), inf, inf
    for rows in reversed(found):
        found[rows] = least = min(least, found[rows])
    for rows, time in found.items():
        a_row = min(a_row, time / rows)
        found[rows] = a_row * rows
    return found


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
