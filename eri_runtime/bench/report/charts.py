"""The charts of a report: bars with their spread and every sample, stacked stages, memory."""

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
    """A row of a chart: no spread where there is none, and then `note` says why."""

    label: str
    kind: Kind
    found: Spread | None
    samples: Sequence[float] = ()
    counts: bool = True
    note: str = ""


def bars(identity: str, title: str, unit: str, rows: Sequence[Bar]) -> str:
    """Medians as bars, a whisker from p10 to p90, and a dot for each sample."""
    most = max((row.found.high for row in rows if row.found), default=1.0) * 1.04
    pattern = f"{identity}-{svg.HATCH}"
    inner = [svg.hatch(pattern), _grid(most, len(rows) * ROW, unit)]
    inner += [_bar(row, i * ROW, most, unit, pattern) for i, row in enumerate(rows)]
    return svg.figure(
        identity, title, _described(rows, unit), len(rows) * ROW + AXIS, svg.joined(inner)
    )


def _bar(row: Bar, top: float, most: float, unit: str, pattern: str) -> str:
    note = f"  {row.note}" if row.note else ""
    parts = [svg.text(0, top + 12, row.label + note, "label" if row.counts else "label out")]
    if row.found is None:
        return svg.joined([*parts, svg.line(0, top + LABEL + 6, 3, top + LABEL + 6, "none")])
    y, scale = top + LABEL, 100 / most
    found = f"{number(row.found.median)} {unit}"
    parts.append(svg.text(100, top + 12, found, "value", "end"))
    parts.append(svg.rect(0, y, row.found.median * scale, BAR, f"bar {row.kind}", rx="2"))
    if not row.counts:
        fill = f"url(#{pattern})"
        parts.append(svg.rect(0, y, row.found.median * scale, BAR, "struck", fill=fill))
    parts += _whisker(row.found, y + BAR / 2, scale)
    parts += [
        svg.dot(min(each * scale, 99.6), y + BAR + STRIP / 2 + 1, f"dot {row.kind}")
        for each in row.samples
    ]
    return svg.joined(parts)


def _whisker(found: Spread, middle: float, scale: float) -> list[str]:
    """From p10 to p90; nothing of a single value."""
    if found.count < 2:
        return []
    low, high = found.low * scale, found.high * scale
    ends = [svg.line(end, middle - 4, end, middle + 4, "whisker") for end in (low, high)]
    return [svg.line(low, middle, high, middle, "whisker"), *ends]


def stacked(identity: str, title: str, rows: Sequence[tuple[Bar, Sequence[float]]]) -> str:
    """The medians of `STAGES`, one after the other."""
    most = max((sum(stages) for _, stages in rows), default=1.0) * 1.04 or 1.0
    height = LABEL + BAR + GAP
    inner = [_grid(most, len(rows) * height, "ms")]
    for number_, (row, stages) in enumerate(rows):
        top, x = number_ * height, 0.0
        note = f"  {row.note}" if row.note else ""
        inner.append(
            svg.text(0, top + 12, row.label + note, "label" if row.counts else "label out")
        )
        if stages:
            inner.append(svg.text(100, top + 12, f"{number(sum(stages))} ms", "value", "end"))
        for stage, value in zip(STAGES, stages, strict=False):
            inner.append(svg.rect(x, top + LABEL, value * 100 / most, BAR, f"stage {stage}"))
            x += value * 100 / most
    told = "; ".join(
        f"{row.label}: "
        + ", ".join(f"{s} {number(v)} ms" for s, v in zip(STAGES, stages, strict=True))
        for row, stages in rows
        if stages
    )
    return svg.figure(identity, title, told, len(rows) * height + AXIS, svg.joined(inner))


def memory(identity: str, label: str, kind: Kind, found: Memory, most: int) -> str:
    """A process's memory from its start: the resident set as an area, its share as dots."""
    end = max(each.t for each in found.timeline) or 1.0
    top = 30.0

    def at(t: float, size: int) -> tuple[float, float]:
        return 100 * t / end, 100 - 94 * size / most

    points = [at(each.t, each.rss) for each in found.timeline]
    area = svg.path(points, f"area {kind}", closed=True) + svg.path(points, f"line {kind}")
    shares = [at(each.t, each.pss) for each in found.timeline if each.pss is not None]
    inner = [svg.text(0, 12, label, "label"), svg.stretched(top, PLOT, area)]
    inner += [svg.dot(x, top + y * PLOT / 100, f"pss {kind}", 2) for x, y in shares]
    for t in found.events.values():
        x = 100 * t / end
        inner.append(svg.line(x, top, x, top + PLOT, "event"))
    inner.append(svg.line(0, top + PLOT, 100, top + PLOT, "axis"))
    inner.append(svg.text(0, top + PLOT + 15, "0", "tick"))
    inner.append(svg.text(100, top + PLOT + 15, f"{end:.1f} s", "tick", "end"))
    largest = max(each.rss for each in found.timeline)
    inner.append(svg.text(100, 12, f"{largest / MEGABYTE:,.0f} MB", "value", "end"))
    told = ", ".join(f"{EVENTS[name]} at {t:.1f} s" for name, t in found.events.items())
    inner.append(svg.text(0, 25, told, "tick"))
    described = f"Rises to {largest / MEGABYTE:,.0f} MB in {end:.1f} s; {told}."
    return svg.figure(identity, f"Memory of {label}", described, top + PLOT + 20, svg.joined(inner))


def _grid(most: float, height: float, unit: str) -> str:
    parts = []
    for tick in svg.ticks(most):
        x = 100 * tick / most
        parts.append(svg.line(x, 0, x, height, "grid"))
        anchor = "start" if tick == 0 else "middle" if x < 93 else "end"
        last = f" {unit}" if tick == svg.ticks(most)[-1] else ""
        parts.append(svg.text(x, height + 14, f"{tick:,g}{last}", "tick", anchor))
    return svg.joined(parts)


def _described(rows: Sequence[Bar], unit: str) -> str:
    return "; ".join(
        f"{row.label}: {spread_text(row.found)} {unit}" if row.found else f"{row.label}: {row.note}"
        for row in rows
    )
