"""Whose turn it is: short requests pass long ones, long ones come to an end, company must pay."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import pytest

from eri_runtime.serve.step_costs import StepCosts
from eri_runtime.serve.turns import next_step

MOST_ROWS = 16


@dataclass(eq=False)
class Waiting:
    """A request that waits for its next step."""

    total_steps: int
    group: str = "a"
    rows: int = 2
    since: float = 0.0
    most_rows: int = MOST_ROWS
    made: int = 0


def learned(**lines):
    """Returns the costs of groups whose steps take `fixed + rows·row`, by name."""
    costs = StepCosts()
    for group, (fixed, row) in lines.items():
        for rows in (1, 1, 2, 2, 8, 8):
            costs.made(group, rows, fixed + rows * row)
    return costs


def served(requests, costs):
    """Serves requests as they arrive; returns when each was done."""
    now, done, waiting = 0.0, {}, sorted(requests, key=lambda each: each.since)
    while waiting:
        ready = [each for each in waiting if each.since <= now]
        if not ready:
            now = waiting[0].since
            continue
        batch = next_step(ready, costs, now)
        rows = sum(each.rows for each in batch)
        now += costs.cost(batch[0].group).of(rows)
        for each in batch:
            each.made += 1
            if each.made == each.total_steps:
                done[each] = now
                waiting.remove(each)
    return done


@pytest.mark.parametrize("group", ["a", "b"])
def test_a_short_request_passes_a_long_one(group):
    costs = learned(a=(0.0, 0.5), b=(0.0, 0.5))
    long, short = Waiting(100), Waiting(4, group, since=10.0)
    done = served([long, short], costs)
    assert done[short] == pytest.approx(10.0 + 4.0)
    assert done[long] == pytest.approx(100.0 + 4.0)


def test_a_long_request_is_done_though_short_ones_never_end():
    """They alone fill the time, so each of its steps makes all later ones later."""
    costs = learned(a=(0.0, 0.5))
    short = [Waiting(4, since=4.0 * number) for number in range(1000)]
    long = Waiting(12)
    done = served([long, *short], costs)
    assert 12.0 < done[long] < 1000.0
    assert max(done[each] - each.since for each in short) == pytest.approx(4.0 + 12.0)


def test_requests_of_one_length_are_served_in_order():
    requests = [Waiting(5, since=0.1 * number) for number in range(5)]
    done = served(requests, learned(a=(0.0, 0.5)))
    assert sorted(done, key=done.get) == requests


def test_all_join_where_company_is_free():
    requests = [Waiting(20, rows=2) for _ in range(10)]
    batch = next_step(requests, learned(a=(1.0, 0.0)), 0.0)
    assert len(batch) == MOST_ROWS // 2


@pytest.mark.parametrize(("rows", "together"), [([1, 2, 2, 2], 2), ([1] * 7, 6), ([5, 2], 1)])
def test_batches_have_few_sizes(rows, together):
    """Of 1 and 2 rows come 3, of 7 rows 6; 5 rows alone stay alone."""
    requests = [Waiting(20, rows=each, since=number) for number, each in enumerate(rows)]
    assert next_step(requests, learned(a=(1.0, 0.0)), 9.0) == requests[:together]


def test_nobody_joins_where_company_saves_nothing():
    requests = [Waiting(20) for _ in range(10)]
    assert len(next_step(requests, learned(a=(0.0, 1.0)), 0.0)) == 1


@pytest.mark.parametrize(("waiting", "together"), [(2, 2), (3, 2), (11, 6)])
def test_more_join_when_more_wait(waiting, together):
    """The k in a call lose 2 rows of 0.5 s each; the others save 1 s: k <= waiting - k."""
    requests = [Waiting(20) for _ in range(waiting)]
    batch = next_step(requests, learned(a=(1.0, 0.5)), 0.0)
    assert len(batch) == together


def test_a_request_of_more_rows_than_a_call_has_goes_alone():
    big, small = Waiting(2, rows=20), Waiting(90)
    assert next_step([small, big], learned(a=(1.0, 0.0)), 0.0) == [big]


def test_a_group_that_was_never_timed_has_its_turn_at_once():
    known, new = Waiting(4, "known"), Waiting(4, "new", since=0.1)
    costs = learned(known=(0.0, 0.5))
    done = served([known, new], costs)
    assert done[new] <= 8.0 + 1e-9


def test_costs_are_the_line_through_the_times():
    cost = learned(a=(3.0, 0.5)).cost("a")
    assert cost == pytest.approx((3.0, 0.5))


def test_half_is_fixed_until_other_rows_were_tried():
    costs = StepCosts()
    for _ in range(3):
        costs.made("a", 4, 2.0)
    assert costs.cost("a") == (1.0, 0.25)


def test_the_first_step_of_a_size_may_open_something_and_does_not_count():
    costs = StepCosts()
    for rows in (1, 4):
        costs.made("a", rows, 60.0)
        costs.made("a", rows, 0.5 * rows)
    assert costs.cost("a") == pytest.approx((0.0, 0.5))


def test_a_hiccup_is_soon_forgotten():
    costs = learned(a=(1.0, 0.5))
    costs.made("a", 1, 15.0)
    for _ in range(5):
        costs.made("a", 1, 1.5)
    assert costs.cost("a").of(1) == pytest.approx(1.5, rel=0.05)


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_a_time_that_others_show_to_be_too_long_counts_for_less(rows):
    """A step of 8 rows takes no longer than four of 2, and one row no longer than two."""
    costs = StepCosts()
    for each in (1, 2, 4, 8):
        for _ in range(2):
            costs.made("a", each, 1.5 + each + (30.0 if each == rows else 0.0))
    fixed, row = costs.cost("a")
    assert 0.5 < fixed < 2.5
    assert row == pytest.approx(1.0, abs=0.35)


def test_times_that_were_too_long_do_not_keep_requests_apart_for_ever():
    """All steps of more rows took long once; the cost of a row is 0.5 and the fixed one 1."""
    costs = learned(a=(0.0, 5.0))
    waiting = [Waiting(1000) for _ in range(8)]
    sizes = []
    for now in range(300):
        batch = next_step(waiting, costs, float(now))
        sizes.append(len(batch))
        rows = sum(each.rows for each in batch)
        costs.made("a", rows, 1.0 + 0.5 * rows)
    assert sizes[0] == 1
    assert min(sizes[200:]) >= 4


def test_no_part_of_a_cost_is_negative():
    costs = StepCosts()
    for rows, seconds in ((1, 5.0), (1, 5.0), (8, 1.0), (8, 1.0), (9, 90.0), (9, 90.0)):
        costs.made("a", rows, seconds)
        assert min(costs.cost("a")) >= 0.0


def test_only_some_groups_are_remembered():
    costs = StepCosts()
    for number in range(2000):
        for _ in range(2):
            costs.made(number, 1, 1.0)
    assert len(costs._times) == len(costs._costs) <= 256
    assert [key for key, _ in groupby(costs._times)][-1] == 1999
