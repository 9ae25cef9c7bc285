"""The tables of a report: all figures of a size, in two tables that fit a page of 1280 pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from eri_runtime.bench.record import Record, Row
from eri_runtime.bench.statistics import STEP, WHOLE, spread, values
from eri_runtime.bench.summary import ratio_to_reference
from eri_runtime.bench.table import (
    FLIP,
    MAX,
    MISSING,
    PSNR,
    mark,
    per_minute,
    precision,
    ratio_text,
    spread_text,
    timed,
)

MEGABYTE = 1e6
REMARK = "Remark"
JOINER = "\u2060"  # Unicode's word joiner: no line ends beside it
Cell = Callable[[Record, Row], str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: its heading, the names of its columns, and its rows.

    Attributes:
        heading: What it shows.
        columns: The name of each column.
        rows: The cells of each row, and whether the row does not count.
    """

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], bool], ...]


def tables(record: Record, rows: Sequence[Row]) -> tuple[Table, ...]:
    """Returns the tables of the rows of one size."""
    return tuple(
        Table(
            heading=heading,
            columns=tuple(columns),
            rows=tuple(
                (tuple(unbroken(cell(record, row)) for cell in columns.values()), not row.counts)
                for row in rows
            ),
        )
        for heading, columns in TABLES.items()
    )


def unbroken(text: str) -> str:
    """Returns a cell's text that breaks neither within a range nor between `≥` and its number."""
    if text == MISSING:
        return text
    return text.replace("–", f"{JOINER}–{JOINER}").replace("≥ ", "≥\xa0").replace("≤ ", "≤\xa0")


def _spread(figure: str) -> Cell:
    """Returns a column of a figure's median with its spread."""
    return lambda _, row: spread_text(spread(values(row, figure)))


def _ratio(figure: str) -> Cell:
    """Returns a column of a figure's ratio to the reference."""
    return lambda record, row: ratio_text(ratio_to_reference(record, row, figure))


def _peak(record: Record, row: Row) -> str:
    """Returns the peak memory in MB."""
    memory = record.subject(row.subject).memory
    return MISSING if memory is None or memory.peak is None else f"{memory.peak / MEGABYTE:,.0f}"


def _limit(_: Record, row: Row) -> str:
    """Returns the limit of a row's pictures."""
    limit = row.parity.limit if row.parity else None
    return MISSING if limit is None else f"≥ {limit.psnr:g} dB, ≤ {limit.flip:g}"


NAMED: Mapping[str, Cell] = {"Subject": lambda _, row: row.subject, "Precision": precision}
TABLES: Mapping[str, Mapping[str, Cell]] = {
    "Times": {
        **NAMED,
        "Step, ms": timed(STEP, "median"),
        "Step p95": timed(STEP, "p95"),
        "Step p99": timed(STEP, "p99"),
        "Step ratio": _ratio(STEP),
        "Picture, ms": timed(WHOLE, "median"),
        "Picture p95": timed(WHOLE, "p95"),
        "Picture p99": timed(WHOLE, "p99"),
        "Picture ratio": _ratio(WHOLE),
        "Pictures per minute": per_minute,
        REMARK: mark,
    },
    "Parts, start, memory and pictures": {
        **NAMED,
        "Encode, ms": _spread("encode"),
        "Decode, ms": _spread("decode"),
        "PNG, ms": _spread("png"),
        "Cold start, s": lambda record, row: spread_text(
            spread(record.subject(row.subject).cold_s)
        ),
        "Peak, MB": _peak,
        "Max of 255": MAX,
        "PSNR, dB": PSNR,
        "FLIP": FLIP,
        "Limit": _limit,
    },
}
