"""Compares two records row by row and finds regressions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eri_runtime.bench.record import Record, Row
from eri_runtime.bench.statistics import STEP, WHOLE, values
from eri_runtime.bench.summary import ratio_to_reference

Key = tuple[str, int, int]  # subject, width, height
THRESHOLD = 1.10
COMPARED = (STEP, "encode", "decode", WHOLE)
SAME = ("family", "sizes", "steps", "guidance", "images", "threads", "parameters", "precision")
SAME_MACHINE = ("processor", "cores", "memory", "system", "gpus")


@dataclass(frozen=True, kw_only=True)
class Change:
    """The change of one figure of a row between two records.

    Attributes:
        subject: Name of the subject.
        size: Width and height in pixels.
        figure: Name of the figure, such as `step`.
        before: Median in the first record, in milliseconds.
        after: Median in the second record.
        apart: Whether the second spread (p10 to p90) lies above the first, so that the change is
            more than noise.
        threshold: The ratio above which a change is a regression.
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
        """`after` divided by `before`."""
        return self.after / self.before

    @property
    def regressed(self) -> bool:
        """Whether it became slower by more than the threshold and the noise."""
        return self.apart and self.ratio > self.threshold


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A row's ratio to the reference of its own run, in both records.

    Attributes:
        subject: Name of the subject.
        size: Width and height in pixels.
        figure: Name of the figure.
        before: Median ratio in the first record.
        after: Median ratio in the second record.
    """

    subject: str
    size: tuple[int, int]
    figure: str
    before: float
    after: float

    @property
    def apart(self) -> float:
        """The relative difference of the ratios: 0.1 for 0.50 and 0.55 in either order."""
        low, high = sorted((self.before, self.after))
        return high / low - 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The differences between two records.

    Attributes:
        changes: Changes of rows that count in both records.
        moved: Ratios to the reference of each run, which do not depend on the machine's speed.
        missing: Rows that only one record has.
        lost: Rows that counted in the first record and do not in the second.
        notes: Warnings that the machines or the workloads differ.
    """

    changes: tuple[Change, ...]
    moved: tuple[Moved, ...]
    missing: tuple[str, ...]
    lost: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        """Whether any row became slower or does not count any more."""
        return bool(self.lost) or any(each.regressed for each in self.changes)


def compare(before: Record, after: Record, threshold: float = THRESHOLD) -> Comparison:
    """Compares two records; rows are matched by subject and size.

    Args:
        before: The earlier record.
        after: The later record.
        threshold: The ratio of medians above which a change is a regression.

    Returns:
        The changes, the ratios to the reference and warnings.
    """
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
            f"{_label(rows[1][key])}: {rows[1][key].reason}"
            for key in both
            if rows[0][key].counts and not rows[1][key].counts
        ),
        notes=tuple(_notes(before, after)),
    )


def lines(comparison: Comparison) -> Iterator[str]:
    """Yields the comparison as lines of text."""
    yield from (f"warning: {each}" for each in comparison.notes)
    for each in comparison.changes:
        flag = "  REGRESSION" if each.regressed else ""
        noise = "" if each.apart else "  (within the spread)"
        size = f"{each.size[0]}x{each.size[1]}"
        yield (
            f"{each.subject} {size} {each.figure}: {each.before:.2f} -> {each.after:.2f} ms, "
            f"{each.ratio:.2f}{noise}{flag}"
        )
    if comparison.moved:
        most = max(comparison.moved, key=lambda each: each.apart)
        yield (
            f"{len(comparison.moved)} ratios to the reference moved by at most {most.apart:.0%}: "
            f"{most.subject} {most.size[0]}x{most.size[1]} {most.figure}, "
            f"{most.before:.3f} -> {most.after:.3f}"
        )
    yield from (f"REGRESSION: does not count any more: {each}" for each in comparison.lost)
    yield from (f"missing {each}" for each in comparison.missing)


def _key(row: Row) -> Key:
    """Returns what rows are matched by."""
    return row.subject, row.width, row.height


def _label(row: Row) -> str:
    """Returns a row's name, as `eri/cpu 512x512`."""
    return f"{row.subject} {row.width}x{row.height}"


def _changes(before: Row, after: Row, threshold: float) -> Iterator[Change]:
    """Yields the changes of a row that counts in both records."""
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
    """Yields the ratios of a row that has them in both records."""
    for figure in (STEP, WHOLE):
        old, new = map(ratio_to_reference, records, rows, (figure, figure))
        if old is not None and new is not None:
            yield Moved(
                subject=rows[0].subject,
                size=(rows[0].width, rows[0].height),
                figure=figure,
                before=old.median,
                after=new.median,
            )


def _missing(before: Mapping[Key, Row], after: Mapping[Key, Row]) -> Iterator[str]:
    """Yields the rows that only one record has."""
    for side, one, other in (("after", before, after), ("before", after, before)):
        yield from (f"{side}: {_label(row)}" for key, row in one.items() if key not in other)


def _notes(before: Record, after: Record) -> Iterator[str]:
    """Yields what differs between the machines and the workloads."""
    for what, names in (("machine", SAME_MACHINE), ("workload", SAME)):
        one, other = getattr(before, what), getattr(after, what)
        for name in names:
            if getattr(one, name) != getattr(other, name):
                yield f"{what}s differ: {name} {getattr(one, name)!r}, {getattr(other, name)!r}"
