"""Prints a record in the terminal: tables of 80 columns at most, then best against best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from eri_runtime.bench.record import Distance, Record, Row
from eri_runtime.bench.statistics import (
    STEP,
    WHOLE,
    Spread,
    pictures_per_minute,
    spread,
    values,
)
from eri_runtime.bench.summary import best_comparisons, busy_machine, ratio_to_reference

MISSING = "–"
Column = Callable[[Record, Row], str]


def show(record: Record, console: Console) -> None:
    """Prints the tables of every size, what did not run or count, and the best comparisons.

    Each table fits into 80 columns.
    """
    for size in record.workload.sizes:
        rows = [row for row in record.rows if (row.width, row.height) == size]
        where = f"{size[0]}x{size[1]}, {record.workload.steps} steps"
        for title, columns in TABLES.items():
            print_table(console, f"{where}: {title}", columns, record, rows)
        for row in rows:
            if row.subject != record.reference and (remark := mark(record, row)):
                say(console, f"{row.subject}: {remark}")
    console.print(NOTE.format(record.reference), highlight=False)
    if any(each.kind == "cached" for each in record.subjects):
        console.print(CACHED, highlight=False)
    if (why := busy_machine(record)) is not None:
        say(console, f"warning: {why}: the figures are not reliable")
    for each in best_comparisons(record):
        where = f"{each.figure} at {each.size[0]}x{each.size[1]}, {each.label}"
        what = "" if each.theirs.startswith(each.claim) else f" ({each.claim})"
        say(console, f"{where}: {each.ours} takes {ratio_text(each.ratio)} of {each.theirs}{what}")


def say(console: Console, text: str) -> None:
    """Prints a line as it is, without marks for words or colours."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_table(
    console: Console,
    title: str,
    columns: Mapping[str, Column],
    record: Record,
    rows: Sequence[Row],
) -> None:
    """Prints one table under its title."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(text(record, row) for text in columns.values()))
    say(console, title)
    console.print(table)


def timed(figure: str, part: str = "median") -> Column:
    """Returns a column of the median or another part of a figure's spread in milliseconds."""

    def text(_: Record, row: Row) -> str:
        found = spread(values(row, figure))
        return MISSING if found is None else number(getattr(found, part))

    return text


def _ratio(figure: str) -> Column:
    """Returns a column of a figure's ratio to the reference."""

    def text(record: Record, row: Row) -> str:
        if row.subject == record.reference:
            return "reference"
        return ratio_text(ratio_to_reference(record, row, figure))

    return text


def _cold(record: Record, row: Row) -> str:
    """Returns the median cold start in seconds."""
    seconds = spread(record.subject(row.subject).cold_s)
    return MISSING if seconds is None else f"{seconds.median:.2f}"


def _peak(record: Record, row: Row) -> str:
    """Returns the peak memory in MB."""
    memory = record.subject(row.subject).memory
    return MISSING if memory is None or memory.peak is None else f"{memory.peak / 1e6:.0f}"


def per_minute(record: Record, row: Row) -> str:
    """Returns the pictures per minute of calls one after the other."""
    pictures = pictures_per_minute(row, record.workload.images)
    return MISSING if pictures is None else number(pictures)


def precision(record: Record, row: Row) -> str:
    """Returns the precision of a row's subject."""
    return record.subject(row.subject).precision


def distance(text: Callable[[Distance], str]) -> Column:
    """Returns a column of a row's worst distance, formatted by `text`."""
    return lambda _, row: MISSING if row.parity is None else text(row.parity.worst)


PSNR = distance(lambda worst: psnr_text(worst.psnr))
MAX = distance(lambda worst: str(worst.max))
FLIP = distance(lambda worst: MISSING if worst.flip is None else f"{worst.flip:.4f}")
NAMED: Mapping[str, Column] = {"subject": lambda _, row: row.subject, "": precision}
TABLES: Mapping[str, Mapping[str, Column]] = {
    "a step, ms": {
        **NAMED,
        "median": timed(STEP),
        "p95": timed(STEP, "p95"),
        "p99": timed(STEP, "p99"),
        "ratio (p10–p90)": _ratio(STEP),
    },
    "a picture, end to end, ms": {
        **NAMED,
        "median": timed(WHOLE),
        "p95": timed(WHOLE, "p95"),
        "p99": timed(WHOLE, "p99"),
        "per min": per_minute,
        "ratio (p10–p90)": _ratio(WHOLE),
    },
    "its parts, ms; a cold start, s; peak memory, MB": {
        **NAMED,
        "encode": timed("encode"),
        "decode": timed("decode"),
        "PNG": timed("png"),
        "cold": _cold,
        "peak": _peak,
    },
    "worst distance from the reference's pictures": {
        **NAMED,
        "PSNR, dB": PSNR,
        "max of 255": MAX,
        "FLIP": FLIP,
    },
}
NOTE = (
    "Ratios are to {} in the same round. p99 of fewer than 100 values lies between the two "
    "largest. Pictures per minute are those of calls one after the other."
)

CACHED = "Pictures with a step cache are compared with those of the same engine without it."


def mark(record: Record, row: Row) -> str:
    """Returns a short remark on a row: that it failed, is the reference or does not count."""
    if row.status != "ok":
        return f"{row.status}: {row.reason}"
    if row.subject == record.reference:
        return "reference"
    return "" if row.counts else "does not count: parity failed"


def spread_text(times: Spread | None) -> str:
    """Formats a spread as `12.3 (12.0–12.9)`."""
    if times is None:
        return MISSING
    median, low, high = (number(each) for each in (times.median, times.low, times.high))
    return f"{median} ({low}–{high})"


def ratio_text(ratio: Spread | None) -> str:
    """Formats a ratio as `0.52 (0.50–0.55)`."""
    return MISSING if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def number(value: float) -> str:
    """Formats a number with three figures and no exponent."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def psnr_text(psnr: float | None) -> str:
    """Formats a PSNR in dB; `same` for identical pictures, which have none."""
    return "same" if psnr is None else f"{psnr:.1f}"
