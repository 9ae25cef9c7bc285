"""Whose turn it is: the most urgent request's, and those whose company pays.

A request's slowdown is the time that it takes, in multiples of the time that it would take alone. A
request is as urgent as its slowdown is large and its own time short: one that is ten times as long
as others waits until its slowdown is ten times theirs. So short requests pass long ones, and long
ones are never held up for ever. Brinch Hansen's highest response ratio (1971, BIT 11) is the
slowdown alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from eri_runtime.serve.step_costs import Group, StepCosts

SIZES = frozenset(size << power for size in (2, 3) for power in range(16)) | {1}  # 1, 2, 3, 4, 6 …


class Candidate(Protocol):
    """A request that is ready for its next step."""

    @property
    def group(self) -> Group:
        """What it must have in common with others to share a step."""

    @property
    def rows(self) -> int:
        """Rows of the denoiser's batch that it takes."""

    @property
    def most_rows(self) -> int:
        """Most rows of a step."""

    @property
    def total_steps(self) -> int:
        """Steps from its first to its last."""

    @property
    def since(self) -> float:
        """When it came, in seconds."""


C = TypeVar("C", bound=Candidate)


def next_step(ready: Iterable[C], costs: StepCosts, now: float) -> list[C]:
    """Returns the requests that make the next step together, at least one of the ready ones."""
    waiting = sorted(ready, key=lambda each: _urgency(each, costs, now), reverse=True)
    first = waiting[0]
    group = [each for each in waiting if each.group == first.group]
    return _company(group, costs, len(waiting))


def _urgency(each: Candidate, costs: StepCosts, now: float) -> float:
    """Returns a request's slowdown, were it alone from now on, by the time it takes alone."""
    alone = each.total_steps * costs.cost(each.group).of(each.rows)
    return (now - each.since + alone) / alone**2


def _company(group: Sequence[C], costs: StepCosts, waiting: int) -> list[C]:
    """Returns the first of a group, and the next ones as long as each saves more than it costs.

    To join saves the fixed part of a step for all who wait, and costs all in the batch the time of
    the rows that come. More than one request only make up a batch of `SIZES` rows, as engines plan,
    compile or capture each size once.
    """
    cost, rows, count = costs.cost(group[0].group), 0, 1
    for number, each in enumerate(group):
        delay, saved = number * each.rows * cost.row, (waiting - number) * cost.fixed
        if number and (delay > saved or rows + each.rows > each.most_rows):
            break
        rows += each.rows
        if rows in SIZES:
            count = number + 1
    return list(group[:count])
