"""Whose turn it is: deficit round robin (Shreedhar and Varghese 1995, SIGCOMM) over groups.

A group is what can share an engine call. Each time round, every group gets the same credit, and
makes steps while its credit covers what a step of it costs. So groups get equal shares of time,
whether their steps are short or long.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SMOOTHING = 0.3  # weight of the newest time of a step
Group = tuple[object, ...]
FIRST = 0.1  # seconds that a step is thought to take before one was timed


@dataclass
class _Account:
    """A group's credit, and what its steps cost, in seconds."""

    credit: float = 0.0
    cost: float | None = None


class Turns:
    """Picks the group that makes the next step."""

    def __init__(self) -> None:
        self._groups: dict[Group, _Account] = {}  # in the order of the round

    def next(self, waiting: Iterable[Group]) -> Group:
        """Returns the group of `waiting` whose turn it is; there must be one.

        Groups that are not among them leave the round, and lose their credit.
        """
        present = list(dict.fromkeys(waiting))
        self._groups = {
            **{key: group for key, group in self._groups.items() if key in present},
            **{key: _Account() for key in present if key not in self._groups},
        }
        quantum = min(self.cost(key) for key in present)
        while True:
            for key, group in list(self._groups.items()):
                if group.credit >= self.cost(key):
                    return key
                group.credit += quantum
                self._groups[key] = self._groups.pop(key)  # to the end of the round
                if group.credit >= self.cost(key):
                    return key

    def cost(self, group: Group) -> float:
        """Returns what the next step of a group should cost, in seconds."""
        known = self._groups[group].cost if group in self._groups else None
        if known is not None:
            return known
        timed = [each.cost for each in self._groups.values() if each.cost is not None]
        return min(timed, default=FIRST)

    def made(self, group: Group, seconds: float) -> None:
        """Notes that a group has made a step, and how long it took.

        The first one may have opened the denoiser: it counts as no longer than was expected.
        """
        found = self._groups[group]
        if found.cost is None:
            seconds = found.cost = min(seconds, self.cost(group))
        found.credit -= seconds
        found.cost += SMOOTHING * (seconds - found.cost)
