"""Conclusions from a record: each row's ratio to the reference, and best against best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eri_runtime.bench.plan import EAGER
from eri_runtime.bench.record import Record, Row, Subject
from eri_runtime.bench.statistics import STEP, WHOLE, Spread, ratio, spread, values

Size = tuple[int, int]
COLD = "cold start"
# share of the cores: a higher load average means other work, which distorts the figures
QUIET = 0.5


@dataclass(frozen=True, kw_only=True)
class Best:
    """Our best subject compared with another in one figure.

    Attributes:
        claim: What `theirs` is, such as `PyTorch eager, fp32`.
        figure: Name of the figure, such as `step`.
        size: Width and height in pixels.
        ours: Name of our subject.
        theirs: Name of the other subject.
        ratio: Our time divided by theirs: below 1 is faster.
    """

    claim: str
    figure: str
    size: Size
    ours: str
    theirs: str
    ratio: Spread


def busy_machine(record: Record) -> str | None:
    """Returns a warning if the machine had other work before the run, or None.

    The load after the run says nothing, as the run itself is part of it.
    """
    load, cores = record.machine.load_before, record.machine.cores
    if load <= QUIET * cores:
        return None
    return f"the machine was busy before the run, with a load of {load:g} on {cores} cores"


def ratio_to_reference(record: Record, row: Row, figure: str) -> Spread | None:
    """Returns a row's ratio to the reference at its size; None if either does not count."""
    reference = record.row(record.reference, (row.width, row.height))
    if reference is None or not (row.counts and reference.counts) or row is reference:
        return None
    return ratio(row, reference, figure)


def best_comparisons(record: Record) -> list[Best]:
    """Compares our best with eager PyTorch and the best PyTorch of each precision.

    The best is the row with the lowest median among those that count. Cold starts are compared at
    the first size.
    """
    return [best for size in record.workload.sizes for best in _bests(record, size)]


def _bests(record: Record, size: Size) -> Iterator[Best]:
    """Yields the comparisons at one size."""
    rows = [row for row in record.rows if (row.width, row.height) == size and row.counts]
    kinds = {each.name: each for each in record.subjects}
    ours = [row for row in rows if kinds[row.subject].kind == "eri"]
    torch = [row for row in rows if kinds[row.subject].kind == "torch"]
    eager = [row for row in torch if row.subject == EAGER]
    for figure in (STEP, WHOLE):
        yield from _compare_best("PyTorch eager, fp32", figure, size, ours, eager)
        for precision in ("fp32", "bf16", "fp16"):
            mine, theirs = (
                _of_precision(kinds.values(), each, precision) for each in (ours, torch)
            )
            yield from _compare_best(f"the best PyTorch, {precision}", figure, size, mine, theirs)
    if size == record.workload.sizes[0]:
        yield from _cold(record, size, ours, eager)


def _compare_best(
    claim: str, figure: str, size: Size, ours: Sequence[Row], theirs: Sequence[Row]
) -> Iterator[Best]:
    """Yields the best of `ours` compared with the best of `theirs`, if both have rows."""
    if not (ours and theirs):
        return
    mine, other = (min(each, key=lambda row: _median(row, figure)) for each in (ours, theirs))
    if (times := ratio(mine, other, figure)) is not None:
        yield Best(
            claim=claim, figure=figure, size=size,
            ours=mine.subject, theirs=other.subject, ratio=times,
        )  # fmt: skip


def _cold(record: Record, size: Size, ours: Iterable[Row], eager: Sequence[Row]) -> Iterator[Best]:
    """Yields our quickest cold start compared with diffusers', ratios within a round."""
    started = [each for row in ours if (each := record.subject(row.subject)).cold_s]
    theirs = [each for row in eager if (each := record.subject(row.subject)).cold_s]
    if not (started and theirs):
        return
    mine = min(started, key=lambda each: float(np.median(each.cold_s)))
    pairs = zip(mine.cold_s, theirs[0].cold_s, strict=False)
    ratios = spread([one / other for one, other in pairs])
    if ratios is not None:
        yield Best(
            claim="diffusers, eager fp32", figure=COLD, size=size,
            ours=mine.name, theirs=theirs[0].name, ratio=ratios,
        )  # fmt: skip


def _of_precision(subjects: Iterable[Subject], rows: Sequence[Row], precision: str) -> list[Row]:
    """Returns the rows whose subject has this precision."""
    names = {each.name for each in subjects if each.precision == precision}
    return [row for row in rows if row.subject in names]


def _median(row: Row, figure: str) -> float:
    """Returns the median of a figure; infinity if there are no samples."""
    samples = values(row, figure)
    return float(np.median(samples)) if samples else float("inf")
