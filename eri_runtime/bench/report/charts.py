"""Draws the charts of a report: bars with spread and samples, stacked stages, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eri_runtime.bench.record import STAGES, Kind, Memory
from eri_runtime.bench.report import svg
from eri_runtime.bench.statistics import Spread
from eri_runtime.bench.table import number, spread_text

LABEL, BAR, STRIP, GAP = 17.0, 13.0, 9.0, 11.0  # pixels of a row's parts
AXIS = 22.0
ROW = LABEL + BAR + STRIP + GAP
PLOT = 96.0  # pixels of a memory plot
MEGABYTE = 1e6
EVENTS = {"open": "ready", "first": "1st picture", "second": "2nd"}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A row of a chart.

    Attributes:
        label: Name of the subject.
        kind: Kind of the subject, which sets the colour.
        times: The spread to draw; None if there are no samples.
        samples: All samples, one dot each.
        counts: Whether the row counts; otherwise its bar is striped.
        note: Remark next to the label, such as why there are no samples.
    """

    label: str
    kind: Kind
    times: Spread | None
    samples: Sequence[float] = ()
    counts: bool = True
    note: str = ""


def bars(identity: str, title: str, unit: str, rows: Sequence[Bar]) -> str:
    """Draws medians as bars, with a whisker from p10 to p90 and a dot for each sample."""
    most = max((row.times.high for row in rows if row.times), default=1.0) * 1.04
    pattern = f"{identity}-{svg.HATCH}"
    inner = [svg.hatch(pattern), _grid(most, len(rows) * ROW, unit)]
    inner += [_bar(row, i * ROW, most, unit, pattern) for i, row in enumerate(rows)]
    return svg.figure(
        identity, title, _description(rows, unit), len(rows) * ROW + AXIS, svg.joined(inner)
    )


def _bar(row: Bar, top: float, most: float, unit: str, pattern: str) -> str:
    """Draws one row at `top` pixels; the full width is `most` units."""
    note = f"  {row.note}" if row.note else ""
    parts = [svg.text(0, top + 12, row.label + note, "label" if row.counts else "label out")]
    if row.times is None:
        return svg.joined([*parts, svg.line(0, top + LABEL + 6, 3, top + LABEL + 6, "none")])
    y, scale = top + LABEL, 100 / most
    value = f"{number(row.times.median)} {unit}"
    parts.append(svg.text(100, top + 12, value, "value", "end"))
    parts.append(svg.rect(0, y, row.times.median * scale, BAR, f"bar {row.kind}", rx="2"))
    if not row.counts:
        fill = f"url(#{pattern})"
        parts.append(svg.rect(0, y, row.times.median * scale, BAR, "struck", fill=fill))
    parts += _whisker(row.times, y + BAR / 2, scale)
    parts += [
        svg.dot(min(each * scale, 99.6), y + BAR + STRIP / 2 + 1, f"dot {row.kind}")
        for each in row.samples
    ]
    return svg.joined(parts)


def _whisker(times: Spread, middle: float, scale: float) -> list[str]:
    """Draws a whisker from p10 to p90; nothing for a single value."""
    if times.count < 2:
        return []
    low, high = times.low * scale, times.high * scale
    ends = [svg.line(end, middle - 4, end, middle + 4, "whisker") for end in (low, high)]
    return [svg.line(low, middle, high, middle, "whisker"), *ends]


def stacked(identity: str, title: str, rows: Sequence[tuple[Bar, Sequence[float]]]) -> str:
    """Draws the medians of `STAGES` one after the other in each bar."""
    most = max((sum(stages) for _, stages in rows), default=1.0) * 1.04 or 1.0
    height = LABEL + BAR + GAP
    inner = [_grid(most, len(rows) * height, "ms")]
    for index, (row, stages) in enumerate(rows):
        top, x = index * height, 0.0
        note = f"  {row.note}" if row.note else ""
        inner.append(
            svg.text(0, top + 12, row.label + note, "label" if row.counts else "label out")
        )
        if stages:
            inner.append(svg.text(100, top + 12, f"{number(sum(stages))} ms", "value", "end"))
        for stage, value in zip(STAGES, stages, strict=False):
            inner.append(svg.rect(x, top + LABEL, value * 100 / most, BAR, f"stage {stage}"))
            x += value * 100 / most
    description = "; ".join(
        f"{row.label}: "
        + ", ".join(f"{s} {number(v)} ms" for s, v in zip(STAGES, stages, strict=True))
        for row, stages in rows
        if stages
    )
    return svg.figure(identity, title, description, len(rows) * height + AXIS, svg.joined(inner))


def memory(identity: str, label: str, kind: Kind, memory: Memory, most: int) -> str:
    """Draws a process's memory from its start: RSS as an area, PSS as dots."""
    end = max(each.t for each in memory.timeline) or 1.0
    top = 30.0

    def at(t: float, size: int) -> tuple[float, float]:
        return 100 * t / end, 100 - 94 * size / most

    points = [at(each.t, each.rss) for each in memory.timeline]
    area = svg.path(points, f"area {kind}", closed=True) + svg.path(points, f"line {kind}")
    dots = [at(each.t, each.pss) for each in memory.timeline if each.pss is not None]
    inner = [svg.text(0, 12, label, "label"), svg.stretched(top, PLOT, area)]
    inner += [svg.dot(x, top + y * PLOT / 100, f"pss {kind}", 2) for x, y in dots]
    for t in memory.events.values():
        x = 100 * t / end
        inner.append(svg.line(x, top, x, top + PLOT, "event"))
    inner.append(svg.line(0, top + PLOT, 100, top + PLOT, "axis"))
    inner.append(svg.text(0, top + PLOT + 15, "0", "tick"))
    inner.append(svg.text(100, top + PLOT + 15, f"{end:.1f} s", "tick", "end"))
    largest = max(each.rss for each in memory.timeline)
    inner.append(svg.text(100, 12, f"{largest / MEGABYTE:,.0f} MB", "value", "end"))
    events = ", ".join(f"{EVENTS[name]} at {t:.1f} s" for name, t in memory.events.items())
    inner.append(svg.text(0, 25, events, "tick"))
    description = f"Rises to {largest / MEGABYTE:,.0f} MB in {end:.1f} s; {events}."
    return svg.figure(
        identity, f"Memory of {label}", description, top + PLOT + 20, svg.joined(inner)
    )


def _grid(most: float, height: float, unit: str) -> str:
    """Draws vertical lines at round numbers, with their labels."""
    parts = []
    for tick in svg.ticks(most):
        x = 100 * tick / most
        parts.append(svg.line(x, 0, x, height, "grid"))
        anchor = "start" if tick == 0 else "middle" if x < 93 else "end"
        last = f" {unit}" if tick == svg.ticks(most)[-1] else ""
        parts.append(svg.text(x, height + 14, f"{tick:,g}{last}", "tick", anchor))
    return svg.joined(parts)


def _description(rows: Sequence[Bar], unit: str) -> str:
    """Returns the values of the bars as text."""
    return "; ".join(
        f"{row.label}: {spread_text(row.times)} {unit}" if row.times else f"{row.label}: {row.note}"
        for row in rows
    )
