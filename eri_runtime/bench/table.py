"""A record in the terminal: a line a row, then the best beside the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from eri_runtime.bench.record import Distance, Record, Row
from eri_runtime.bench.statistics import STEP, WHOLE, Spread, spread, values
from eri_runtime.bench.summary import beside_reference, bests, busy

MISSING = "–"
Column = Callable[[Record, Row], str]


def show(record: Record, console: Console) -> None:
    """Print everything that was found."""
    for size in record.workload.sizes:
        rows = [row for row in record.rows if (row.width, row.height) == size]
        where = f"{size[0]}x{size[1]}, {record.workload.steps} steps"
        ratios = f"ratios to {record.reference}'s"
        tell(console, f"{where}: median ms (p10–p90), {ratios}", SPEED, record, rows)
        tell(console, f"{where}: the rest", REST, record, rows)
    if (why := busy(record)) is not None:
        console.print(f"warning: {why}: the figures are not to be relied on", soft_wrap=True)
    for each in bests(record):
        found = ratio_text(each.ratio)
        where = f"{each.figure} at {each.size[0]}x{each.size[1]}"
        claim = f"{each.ours} is {found} of {each.theirs} ({each.claim})"
        console.print(f"{where}: {claim}", highlight=False, soft_wrap=True)


def tell(
    console: Console,
    title: str,
    columns: Mapping[str, Column],
    record: Record,
    rows: Sequence[Row],
) -> None:
    """Print one table."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if 0 < number < len(columns) - 1 else "left")
    for row in rows:
        table.add_row(*(text(record, row) for text in columns.values()))
    console.print(table)


def _timed(figure: str) -> Column:
    return lambda _, row: spread_text(spread(values(row, figure)))


def _ratio(figure: str) -> Column:
    return lambda record, row: ratio_text(beside_reference(record, row, figure))


def _cold(record: Record, row: Row) -> str:
    found = spread(record.subject(row.subject).cold_s)
    return MISSING if found is None else f"{found.median:.2f}"


def _peak(record: Record, row: Row) -> str:
    memory = record.subject(row.subject).memory
    return MISSING if memory is None or memory.peak is None else f"{memory.peak / 1e6:.0f}"


def _parity(text: Callable[[Distance], str]) -> Column:
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
    """What is to be said of a row, in a few words."""
    if row.status != "ok":
        return f"{row.status}: {row.reason}"
    if row.subject == record.reference:
        return "reference"
    return "" if row.counts else "does not count: parity failed"


def spread_text(found: Spread | None) -> str:
    """`12.3 (12.0–12.9)`."""
    if found is None:
        return MISSING
    median, low, high = (number(each) for each in (found.median, found.low, found.high))
    return f"{median} ({low}–{high})"


def ratio_text(found: Spread | None) -> str:
    """`0.52 (0.50–0.55)`."""
    return MISSING if found is None else f"{found.median:.2f} ({found.low:.2f}–{found.high:.2f})"


def number(value: float) -> str:
    """Three figures, no exponents."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def psnr_text(psnr: float | None) -> str:
    """In dB; identical pictures have none."""
    return "same" if psnr is None else f"{psnr:.1f}"
