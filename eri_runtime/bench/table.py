"""Prints a record in the terminal: one line per row, then best against best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from eri_runtime.bench.record import Distance, Record, Row
from eri_runtime.bench.statistics import STEP, WHOLE, Spread, spread, values
from eri_runtime.bench.summary import best_comparisons, busy_machine, ratio_to_reference

MISSING = "–"
Column = Callable[[Record, Row], str]


def show(record: Record, console: Console) -> None:
    """Prints the tables of every size, warnings and the best comparisons."""
    for size in record.workload.sizes:
        rows = [row for row in record.rows if (row.width, row.height) == size]
        where = f"{size[0]}x{size[1]}, {record.workload.steps} steps"
        ratios = f"ratios to {record.reference}'s"
        print_table(console, f"{where}: median ms (p10–p90), {ratios}", SPEED, record, rows)
        print_table(console, f"{where}: the rest", REST, record, rows)
    if (why := busy_machine(record)) is not None:
        console.print(f"warning: {why}: the figures are not reliable", soft_wrap=True)
    for each in best_comparisons(record):
        ratio = ratio_text(each.ratio)
        where = f"{each.figure} at {each.size[0]}x{each.size[1]}"
        claim = f"{each.ours} is {ratio} of {each.theirs} ({each.claim})"
        console.print(f"{where}: {claim}", highlight=False, soft_wrap=True)


def print_table(
    console: Console,
    title: str,
    columns: Mapping[str, Column],
    record: Record,
    rows: Sequence[Row],
) -> None:
    """Prints one table."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if 0 < number < len(columns) - 1 else "left")
    for row in rows:
        table.add_row(*(text(record, row) for text in columns.values()))
    console.print(table)


def _timed(figure: str) -> Column:
    """Returns a column of a figure's spread in milliseconds."""
    return lambda _, row: spread_text(spread(values(row, figure)))


def _ratio(figure: str) -> Column:
    """Returns a column of a figure's ratio to the reference."""
    return lambda record, row: ratio_text(ratio_to_reference(record, row, figure))


def _cold(record: Record, row: Row) -> str:
    """Returns the median cold start in seconds."""
    seconds = spread(record.subject(row.subject).cold_s)
    return MISSING if seconds is None else f"{seconds.median:.2f}"


def _peak(record: Record, row: Row) -> str:
    """Returns the peak memory in MB."""
    memory = record.subject(row.subject).memory
    return MISSING if memory is None or memory.peak is None else f"{memory.peak / 1e6:.0f}"


def _parity(text: Callable[[Distance], str]) -> Column:
    """Returns a column of a row's worst distance, formatted by `text`."""
    return lambda _, row: MISSING if row.parity is None else text(row.parity.worst)


SPEED: Mapping[str, Column] = {
    "subject": lambda _, row: row.subject,
    "step": _timed(STEP),
    "ratio": _ratio(STEP),
    "end to end": _timed(WHOLE),
    "ratio ": _ratio(WHOLE),
    "": lambda record, row: mark(record, row),
}
REST: Mapping[str, Column] = {
    "subject": lambda _, row: row.subject,
    "encode": _timed("encode"),
    "decode": _timed("decode"),
    "PNG": _timed("png"),
    "cold s": _cold,
    "peak MB": _peak,
    "PSNR": _parity(lambda worst: psnr_text(worst.psnr)),
    "max": _parity(lambda worst: str(worst.max)),
    "FLIP": _parity(lambda worst: MISSING if worst.flip is None else f"{worst.flip:.4f}"),
}


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
