"""Deficit round robin: equal shares of time, whatever a step costs."""

from __future__ import annotations

from itertools import pairwise

import pytest

from eri_runtime.serve.turns import Turns


def shares(costs, rounds):
    """Returns the seconds that each group got in so many steps, each group always waiting."""
    turns, got = Turns(), dict.fromkeys(costs, 0.0)
    for _ in range(rounds):
        group = turns.next(costs)
        turns.made(group, costs[group])
        got[group] += costs[group]
    return got


@pytest.mark.parametrize(
    "costs",
    [
        {("a",): 1.0, ("b",): 1.0},
        {("a",): 0.1, ("b",): 1.0},
        {("a",): 0.1, ("b",): 2.0, ("c",): 7.0},
    ],
)
def test_groups_get_equal_shares_of_time(costs):
    got = shares(costs, 4000)
    most, least = max(got.values()), min(got.values())
    assert most - least <= 3 * max(costs.values())  # as far apart as a few of the longest steps


def test_a_short_step_never_waits_for_more_than_one_long_one():
    turns, costs = Turns(), {("short",): 0.1, ("long",): 5.0}
    order = []
    for _ in range(500):
        group = turns.next(costs)
        turns.made(group, costs[group])
        order.append(group[0])
    assert "long" in order
    assert all(pair != ("long", "long") for pair in pairwise(order))


def test_a_single_group_always_has_its_turn():
    turns = Turns()
    for seconds in (0.0, 1.0, 0.0, 5.0):
        assert turns.next([("a",)]) == ("a",)
        turns.made(("a",), seconds)


def test_a_group_that_comes_later_is_not_owed_the_past():
    turns = Turns()
    for _ in range(100):
        turns.made(turns.next([("a",)]), 1.0)
    order = []
    for _ in range(20):
        group = turns.next([("a",), ("b",)])
        turns.made(group, 1.0)
        order.append(group)
    assert 8 <= order.count(("b",)) <= 12


def test_a_group_does_not_pay_for_what_its_first_step_opened():
    turns, first, other = Turns(), ("first",), ("other",)
    turns.made(turns.next([first]), 60.0)
    order = []
    for _ in range(20):
        group = turns.next([first, other])
        turns.made(group, 0.5)
        order.append(group)
    assert 8 <= order.count(first) <= 12
