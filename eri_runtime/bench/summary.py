"""Conclusions from a record: each row's ratio to the reference, and best against best.

Best is compared with best at equal precision. A comparison of two precisions says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eri_runtime.bench.peers import BF16
from eri_runtime.bench.plan import EAGER
from eri_runtime.bench.record import Record, Row
from eri_runtime.bench.statistics import STEP, WHOLE, Spread, ratio, spread, values

Size = tuple[int, int]
COLD = "cold start"
# share of the cores: a higher load average means other work, which distorts the figures
QUIET = 0.5


@dataclass(frozen=True, kw_only=True)
class Best:
    """Our best subject compared with another in one figure.

    Attributes:
        claim: What `theirs` is, such as `the best PyTorch`.
        figure: Name of the figure, such as `step`.
        size: Width and height in pixels.
        ours: Name of our subject.
        theirs: Name of the other subject.
        precisions: The precision of ours, then that of theirs.
        ratio: Our time divided by theirs: below 1 is faster.
    """

    claim: str
    figure: str
    size: Size
    ours: str
    theirs: str
    precisions: tuple[str, str]
    ratio: Spread

    @property
    def mixed(self) -> bool:
        """Whether the two compute in different precisions."""
        return self.precisions[0] != self.precisions[1]

    @property
    def label(self) -> str:
        """The precisions in words: `both fp32`, or `mixed precision: bf16 against fp32`."""
        ours, theirs = self.precisions
        return f"mixed precision: {ours} against {theirs}" if self.mixed else f"both {ours}"


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
    """Compares our best with PyTorch's and with each peer, those of equal precision first.

    At equal precision ours is compared with the best PyTorch, eager PyTorch and each peer; then our
    best of any precision with eager PyTorch, if the precisions differ. The best is the row with the
    lowest median among those that count. Cold starts are compared at the first size.
    """
    found = [best for size in record.workload.sizes for best in _of_size(record, size)]
    return sorted(found, key=lambda best: (record.workload.sizes.index(best.size), best.mixed))


def _of_size(record: Record, size: Size) -> Iterator[Best]:
    """Yields the comparisons at one size."""
    rows = [row for row in record.rows if (row.width, row.height) == size and row.counts]
    figures = (STEP, WHOLE, COLD) if size == record.workload.sizes[0] else (STEP, WHOLE)
    for figure in figures:
        yield from _of_figure(record, rows, figure, size)


def _of_figure(record: Record, rows: Sequence[Row], figure: str, size: Size) -> Iterator[Best]:
    """Yields the comparisons of one figure, each pair of subjects once."""
    measured = [row for row in rows if _times(record, row, figure)]
    ours = [row for row in measured if record.subject(row.subject).kind == "eri"]
    pairs = set[tuple[str, str]]()
    for claim, precision, theirs in _others(record, measured):
        mine = [row for row in ours if precision in (None, record.subject(row.subject).precision)]
        best = _compare(record, figure, size, claim, mine, theirs)
        if best is not None and (best.ours, best.theirs) not in pairs:
            pairs.add((best.ours, best.theirs))
            yield best


def _others(record: Record, rows: Sequence[Row]) -> Iterator[tuple[str, str | None, Sequence[Row]]]:
    """Yields what ours is compared with: a claim, the precision of both (None: any), the rows."""
    subjects = {row.subject: record.subject(row.subject) for row in rows}
    eager = [row for row in rows if row.subject == EAGER]
    for precision in ("fp32", "bf16", "fp16"):
        same = [row for row in rows if subjects[row.subject].precision == precision]
        torch = [row for row in same if subjects[row.subject].kind == "torch"]
        yield "the best PyTorch", precision, torch
        yield "PyTorch eager", precision, [row for row in eager if row in same]
        for row in same:
            if subjects[row.subject].kind == "peer":
                yield row.subject.removesuffix(BF16), precision, [row]
    yield "PyTorch eager", None, eager


def _compare(
    record: Record, figure: str, size: Size, claim: str, ours: Sequence[Row], theirs: Sequence[Row]
) -> Best | None:
    """Returns the best of `ours` compared with the best of `theirs`, if both have rows."""
    if not (ours and theirs):
        return None

    def median(row: Row) -> float:
        return float(np.median(_times(record, row, figure)))

    mine, other = min(ours, key=median), min(theirs, key=median)
    times = _ratio(record, mine, other, figure)
    if times is None:
        return None
    one, two = record.subject(mine.subject), record.subject(other.subject)
    return Best(
        claim=claim, figure=figure, size=size, ours=one.name, theirs=two.name,
        precisions=(one.precision, two.precision), ratio=times,
    )  # fmt: skip


def _times(record: Record, row: Row, figure: str) -> Sequence[float]:
    """Returns all values of a figure; those of a cold start belong to the subject."""
    return record.subject(row.subject).cold_s if figure == COLD else values(row, figure)


def _ratio(record: Record, row: Row, reference: Row, figure: str) -> Spread | None:
    """Returns the spread of a figure's ratios within the rounds."""
    if figure != COLD:
        return ratio(row, reference, figure)
    pairs = zip(_times(record, row, COLD), _times(record, reference, COLD), strict=False)
    return spread([one / other for one, other in pairs])
