"""Two records, row by row: what became slower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eri_runtime.bench.record import Record, Row
from eri_runtime.bench.statistics import STEP, WHOLE, values
from eri_runtime.bench.summary import beside_reference

THRESHOLD = 1.10
COMPARED = (STEP, "encode", "decode", WHOLE)
SAME = ("family", "sizes", "steps", "guidance", "images", "threads", "parameters", "precision")
SAME_MACHINE = ("processor", "cores", "memory", "system", "gpus")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A figure of a row after over before; a regression is above the threshold, and certain.

    `apart` is whether the spreads (p10 to p90) do not overlap: a median that moved within the noise
    is told, and is no regression.
    """

    subject: str
    size: tuple[int, int]
    figure: str
    before: float
    after: float
    apart: bool
    threshold: float

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before

    @property
    def regressed(self) -> bool:
        """Whether it became slower by more than the threshold."""
        return self.apart and self.ratio > self.threshold


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A row's ratio to the reference of its own run, before and after."""

    subject: str
    size: tuple[int, int]
    figure: str
    before: float
    after: float

    @property
    def apart(self) -> float:
        """How far the ratios are from each other: 0.1 for 0.50 and 0.55, either way round."""
        low, high = sorted((self.before, self.after))
        return high / low - 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Changes of rows on both sides; `lost` counted before and do not now; `notes` are warnings.

    `moved` are rows beside the reference of their run, which the machine's own speed is not in.
    """

    changes: tuple[Change, ...]
    moved: tuple[Moved, ...]
    missing: tuple[str, ...]
    lost: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        """Whether anything did."""
        return bool(self.lost) or any(each.regressed for each in self.changes)


def compare(before: Record, after: Record, threshold: float = THRESHOLD) -> Comparison:
    """Match rows by subject and size."""
    rows = [{_key(row): row for row in each.rows} for each in (before, after)]
    both = [key for key in rows[0] if key in rows[1]]
    changes = [change for key in both for change in _changes(rows[0][key], rows[1][key], threshold)]
    return Comparison(
        changes=tuple(changes),
        moved=tuple(
            each for key in both for each in _moved((before, after), (rows[0][key], rows[1][key]))
        ),
        missing=tuple(_missing(*rows)),
        lost=tuple(
            f"{_named(rows[1][key])}: {rows[1][key].reason}"
            for key in both
            if rows[0][key].counts and not rows[1][key].counts
        ),
        notes=tuple(_notes(before, after)),
    )


def lines(found: Comparison) -> Iterator[str]:
    """What is printed."""
    yield from (f"warning: {each}" for each in found.notes)
    for each in found.changes:
        flag = "  REGRESSION" if each.regressed else ""
        noise = "" if each.apart else "  (within the spread)"
        size = f"{each.size[0]}x{each.size[1]}"
        yield (
            f"{each.subject} {size} {each.figure}: {each.before:.2f} -> {each.after:.2f} ms, "
            f"{each.ratio:.2f}{noise}{flag}"
        )
    if found.moved:
        most = max(found.moved, key=lambda each: each.apart)
        yield (
            f"{len(found.moved)} ratios to the reference moved by at most {most.apart:.0%}: "
            f"{most.subject} {most.size[0]}x{most.size[1]} {most.figure}, "
            f"{most.before:.3f} -> {most.after:.3f}"
        )
    yield from (f"REGRESSION: does not count any more: {each}" for each in found.lost)
    yield from (f"missing {each}" for each in found.missing)


def _key(row: Row) -> tuple[str, int, int]:
    return row.subject, row.width, row.height


def _named(row: Row) -> str:
    return f"{row.subject} {row.width}x{row.height}"


def _changes(before: Row, after: Row, threshold: float) -> Iterator[Change]:
    if not (before.counts and after.counts):
        return
    for figure in COMPARED:
        old, new = values(before, figure), values(after, figure)
        if old and new and np.median(old) > 0:
            overlap = np.percentile(new, 10) <= np.percentile(old, 90)
            yield Change(
                subject=before.subject,
                size=(before.width, before.height),
                figure=figure,
                before=float(np.median(old)),
                after=float(np.median(new)),
                apart=not overlap,
                threshold=threshold,
            )


def _moved(records: Sequence[Record], rows: Sequence[Row]) -> Iterator[Moved]:
    """A row's ratios in each of two records, where it has them in both."""
    for figure in (STEP, WHOLE):
        old, new = map(beside_reference, records, rows, (figure, figure))
        if old is not None and new is not None:
            yield Moved(
                subject=rows[0].subject,
                size=(rows[0].width, rows[0].height),
                figure=figure,
                before=old.median,
                after=new.median,
            )


def _missing(before: dict, after: dict) -> Iterator[str]:
    for side, one, other in (("after", before, after), ("before", after, before)):
        yield from (f"{side}: {_named(row)}" for key, row in one.items() if key not in other)


def _notes(before: Record, after: Record) -> Iterator[str]:
    for what, names in (("machine", SAME_MACHINE), ("workload", SAME)):
        one, other = getattr(before, what), getattr(after, what)
        for name in names:
            if getattr(one, name) != getattr(other, name):
                yield f"{what}s differ: {name} {getattr(one, name)!r}, {getattr(other, name)!r}"
