"""What follows from a record: each row beside the reference, and the best beside the best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eri_runtime.bench.plan import EAGER
from eri_runtime.bench.record import Record, Row, Subject
from eri_runtime.bench.statistics import STEP, WHOLE, Spread, ratio, spread, values

Size = tuple[int, int]
COLD = "cold start"
QUIET = 0.5  # of the cores: a load above that is other work, which figures suffer from


@dataclass(frozen=True, kw_only=True)
class Best:
    """`ours` over `theirs` in one figure: a ratio below 1 is faster. `claim` says what of."""

    claim: str
    figure: str
    size: Size
    ours: str
    theirs: str
    ratio: Spread


def busy(record: Record) -> str | None:
    """That the machine had other work, in words, or None; load after is the run's own too."""
    load, cores = record.machine.load_before, record.machine.cores
    if load <= QUIET * cores:
        return None
    return f"the machine was busy before the run, with a load of {load:g} on {cores} cores"


def beside_reference(record: Record, row: Row, figure: str) -> Spread | None:
    """A row's ratio to the reference's of its size; None where it does not count."""
    reference = record.row(record.reference, (row.width, row.height))
    if reference is None or not (row.counts and reference.counts) or row is reference:
        return None
    return ratio(row, reference, figure)


def bests(record: Record) -> list[Best]:
    """Our best beside PyTorch: eager, and at equal precision the best way to run it; cold starts.

    The best is the row with the lowest median, of those that count.
    """
    return [found for size in record.workload.sizes for found in _bests(record, size)]


def _bests(record: Record, size: Size) -> Iterator[Best]:
    rows = [row for row in record.rows if (row.width, row.height) == size and row.counts]
    kinds = {each.name: each for each in record.subjects}
    ours = [row for row in rows if kinds[row.subject].kind == "eri"]
    torch = [row for row in rows if kinds[row.subject].kind == "torch"]
    eager = [row for row in torch if row.subject == EAGER]
    for figure in (STEP, WHOLE):
        yield from _best("PyTorch eager, fp32", figure, size, ours, eager)
        for precision in ("fp32", "bf16", "fp16"):
            mine, theirs = (_of(kinds.values(), each, precision) for each in (ours, torch))
            yield from _best(f"the best PyTorch, {precision}", figure, size, mine, theirs)
    if size == record.workload.sizes[0]:
        yield from _cold(record, size, ours, eager)


def _best(
    claim: str, figure: str, size: Size, ours: Sequence[Row], theirs: Sequence[Row]
) -> Iterator[Best]:
    if not (ours and theirs):
        return
    mine, other = (min(each, key=lambda row: _median(row, figure)) for each in (ours, theirs))
    if (found := ratio(mine, other, figure)) is not None:
        yield Best(
            claim=claim, figure=figure, size=size,
            ours=mine.subject, theirs=other.subject, ratio=found,
        )  # fmt: skip


def _cold(record: Record, size: Size, ours: Iterable[Row], eager: Sequence[Row]) -> Iterator[Best]:
    """Our quickest start beside diffusers'; pairs are of one turn."""
    started = [each for row in ours if (each := record.subject(row.subject)).cold_s]
    theirs = [each for row in eager if (each := record.subject(row.subject)).cold_s]
    if not (started and theirs):
        return
    mine = min(started, key=lambda each: float(np.median(each.cold_s)))
    pairs = zip(mine.cold_s, theirs[0].cold_s, strict=False)
    found = spread([one / other for one, other in pairs])
    if found is not None:
        yield Best(
            claim="diffusers, eager fp32", figure=COLD, size=size,
            ours=mine.name, theirs=theirs[0].name, ratio=found,
        )  # fmt: skip


def _of(subjects: Iterable[Subject], rows: Sequence[Row], precision: str) -> list[Row]:
    names = {each.name for each in subjects if each.precision == precision}
    return [row for row in rows if row.subject in names]


def _median(row: Row, figure: str) -> float:
    found = values(row, figure)
    return float(np.median(found)) if found else float("inf")
