"""Draw the rooms of both packages by floor, from the imports in the code.

`python docs/draw_rooms.py` writes `docs/architecture/rooms.svg`; `--check` exits 1 if the tracked
drawing is not what the code gives. A room is a folder or a file directly in a package. Its floor is
one above the highest room that it imports. An arrow goes from a room to a room that it imports;
arrows that follow from others are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
DRAWING = ROOT / "docs" / "architecture" / "rooms.svg"
EXPORTER, RUNTIME = "eri_export", "eri_runtime"
HIDDEN = {"__main__"}  # `python -m eri_runtime`

WIDTH, MARGIN = 900, 20
BOX, FLOOR = 34, 74  # height of a room, and from floor to floor
LETTER, PADDING, GAP = 8.4, 14, 26  # width of a letter, next to a name, between rooms
SWEEPS = 24
INK, PALE, SHARED = "#37306b", "#8f88c0", "#e8590c"

Imports = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Room:
    """A room's box."""

    name: str
    x: float
    y: float
    width: float


def read_imports() -> tuple[Imports, Imports, frozenset[str]]:
    """What the rooms of exporter and runtime import, and the runtime's rooms the exporter uses."""
    graph = grimp.build_graph(EXPORTER, RUNTIME, cache_dir=None)
    rooms = {package: sorted(_rooms(graph, package)) for package in (EXPORTER, RUNTIME)}
    own = {package: _imports(graph, package, rooms[package]) for package in rooms}
    used = frozenset(
        room
        for room in rooms[RUNTIME]
        if graph.find_shortest_chain(EXPORTER, f"{RUNTIME}.{room}", as_packages=True)
        and _directly(graph, EXPORTER, f"{RUNTIME}.{room}")
    )
    return own[EXPORTER], own[RUNTIME], used


def _rooms(graph: grimp.ImportGraph, package: str) -> set[str]:
    return {child.rpartition(".")[2] for child in graph.find_children(package)} - HIDDEN


def _imports(graph: grimp.ImportGraph, package: str, rooms: Sequence[str]) -> Imports:
    return {
        room: frozenset(
            other
            for other in rooms
            if other != room and _directly(graph, f"{package}.{room}", f"{package}.{other}")
        )
        for room in rooms
    }


def _directly(graph: grimp.ImportGraph, importer: str, imported: str) -> bool:
    """Whether any module of one package imports any module of the other."""
    return bool(
        graph.find_matching_direct_imports(import_expression=f"{importer} -> {imported}")
        or graph.find_matching_direct_imports(import_expression=f"{importer}.** -> {imported}")
        or graph.find_matching_direct_imports(import_expression=f"{importer} -> {imported}.**")
        or graph.find_matching_direct_imports(import_expression=f"{importer}.** -> {imported}.**")
    )


def floors(imports: Imports) -> dict[str, int]:
    """The floor of every room: 0 for one that imports no other."""
    found: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in found:
            found[room] = max((floor(below) + 1 for below in sorted(imports[room])), default=0)
        return found[room]

    for room in sorted(imports):
        floor(room)
    return found


def essential(imports: Imports) -> dict[str, list[str]]:
    """The imports that do not follow from others (the transitive reduction)."""
    reached: dict[str, set[str]] = {}

    def reach(room: str) -> set[str]:
        if room not in reached:
            reached[room] = set(imports[room]).union(*(reach(each) for each in imports[room]))
        return reached[room]

    return {
        room: sorted(
            below
            for below in imports[room]
            if not any(below in reach(other) for other in imports[room] if other != below)
        )
        for room in sorted(imports)
    }


def arrange(imports: Imports, top: float) -> tuple[dict[str, Room], float]:
    """The boxes of a package below `top`, highest floor first, and where they end.

    An arrow that passes floors has a bend on each, `ROOM>ROOM FLOOR`: an empty box without width.
    """
    level = floors(imports)
    rows: list[list[str]] = [[] for _ in range(max(level.values()) + 1)]
    for room in sorted(level):
        rows[level[room]].append(room)
    near: dict[str, list[str]] = {}
    for room, below in _arrows(imports):
        path = [room, *bends(room, below, level), below]
        for passed in path[1:-1]:
            rows[int(passed.rpartition(" ")[2])].append(passed)
        for one, other in pairwise(path):
            near.setdefault(one, []).append(other)
            near.setdefault(other, []).append(one)
    centre = _centres(rows, near)
    highest = len(rows) - 1
    boxes = {
        name: Room(name, centre[name], top + (highest - index) * FLOOR, _box_width(name))
        for index, row in enumerate(rows)
        for name in row
    }
    return boxes, top + highest * FLOOR + BOX


def _arrows(imports: Imports) -> list[tuple[str, str]]:
    return [(room, below) for room, many in essential(imports).items() for below in many]


def bends(room: str, below: str, level: Mapping[str, int]) -> list[str]:
    """The bends of an arrow, one for each floor that it passes."""
    return [f"{room}>{below} {floor}" for floor in range(level[room] - 1, level[below], -1)]


def _centres(rows: Sequence[list[str]], near: Mapping[str, list[str]]) -> dict[str, float]:
    """Where everything is on its floor, by turns moved towards the middle of its neighbours."""
    centre: dict[str, float] = {}
    for row in rows:
        _place(row, centre)
    best = (_crossings(rows, near), dict(centre))
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            ideal = {name: _ideal(name, near, centre) for name in row}
            row.sort(key=lambda name: (ideal[name], name))
            _place(row, centre)
        best = min(best, (_crossings(rows, near), dict(centre)), key=lambda found: found[0])
    return _straightened(rows, near, best[1])


def _straightened(
    rows: Sequence[Sequence[str]], near: Mapping[str, Sequence[str]], centre: dict[str, float]
) -> dict[str, float]:
    """The same order on each floor, with everything as near to its neighbours as there is room."""
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            order = sorted(row, key=lambda name: centre[name])
            centre |= _settled(order, {name: _ideal(name, near, centre) for name in order})
    edges = [centre[name] + side * _box_width(name) / 2 for name in centre for side in (-1, 1)]
    shift = (WIDTH - min(edges) - max(edges)) / 2
    return {name: x + shift for name, x in centre.items()}


def _ideal(name: str, near: Mapping[str, Sequence[str]], centre: Mapping[str, float]) -> float:
    """The mean of its neighbours; the right end for something without any."""
    others = near.get(name, ())
    return sum(centre[other] for other in others) / len(others) if others else WIDTH


def _settled(order: Sequence[str], ideal: Mapping[str, float]) -> dict[str, float]:
    """Places near the ideal ones, in this order and `GAP` apart, within the margins."""
    apart = [(_box_width(a) + _box_width(b)) / 2 + GAP for a, b in pairwise(order)]
    half = [_box_width(name) / 2 for name in order]
    right = [max(ideal[order[0]], MARGIN + half[0])]
    for name, space in zip(order[1:], apart, strict=True):
        right.append(max(ideal[name], right[-1] + space))
    left = [min(ideal[order[-1]], WIDTH - MARGIN - half[-1])]
    for name, space in zip(order[-2::-1], apart[::-1], strict=True):
        left.append(min(ideal[name], left[-1] - space))
    return {
        name: (low + high) / 2 for name, low, high in zip(order, left[::-1], right, strict=True)
    }


def _crossings(rows: Sequence[Sequence[str]], near: Mapping[str, Sequence[str]]) -> int:
    """How many pairs of arrows cross between neighbouring floors."""
    total = 0
    for lower, upper in pairwise(rows):
        place = {name: index for index, name in enumerate(lower)}
        ends = [
            (i, place[other])
            for i, name in enumerate(upper)
            for other in near.get(name, ())
            if other in place
        ]
        total += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(ends) for c, d in ends[:i])
    return total


def _box_width(name: str) -> float:
    return 0.0 if ">" in name else LETTER * len(name) + 2 * PADDING


def _place(row: Sequence[str], centre: dict[str, float]) -> None:
    """Spread a floor's rooms over the width, each with its share of the space between."""
    space = (WIDTH - 2 * MARGIN - sum(map(_box_width, row))) / (len(row) + 1)
    x = MARGIN + space
    for room in row:
        centre[room] = x + _box_width(room) / 2
        x += _box_width(room) + space


def draw() -> str:
    """The drawing as SVG."""
    exporter, runtime, used = read_imports()
    upper, end = arrange(exporter, 64)
    lower_title = end + 74
    lower, bottom = arrange(runtime, lower_title + 32)
    parts = [
        *_title("eri_export", "checkpoints to bundles; may import torch", 30),
        *_package(upper, exporter, frozenset()),
        *_between(end + 14, lower_title - 24),
        *_title("eri_runtime", "bundles to images; NumPy and one engine", lower_title),
        *_package(lower, runtime, used),
    ]
    height = round(bottom + MARGIN)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="14">'
    )
    marker = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{PALE}"/></marker></defs>'
    )
    ground = f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
    return "\n".join([head, marker, ground, *parts, "</svg>", ""])


def _title(name: str, words: str, y: float) -> list[str]:
    x = MARGIN
    return [
        f'<text x="{x}" y="{y:.0f}" font-size="20" font-weight="bold" fill="{INK}">{name}'
        f'<tspan dx="14" font-size="14" font-weight="normal" fill="#555">{words}</tspan></text>'
    ]


def _between(top: float, bottom: float) -> list[str]:
    """The one arrow from the exporter to the runtime."""
    x = WIDTH / 2
    words = "imports the orange rooms; nothing below imports it"
    return [
        f'<line x1="{x:.0f}" y1="{top:.0f}" x2="{x:.0f}" y2="{bottom:.0f}" stroke="{SHARED}" '
        'stroke-width="3"/>',
        f'<path d="M{x - 7:.0f} {bottom - 2:.0f}h14l-7 10z" fill="{SHARED}"/>',
        f'<text x="{x + 14:.0f}" y="{(top + bottom) / 2 + 5:.0f}" fill="#555">{words}</text>',
    ]


def _package(boxes: Mapping[str, Room], imports: Imports, used: frozenset[str]) -> list[str]:
    """The arrows of a package, and its boxes over them."""
    level = floors(imports)
    arrows = [
        _arrow([boxes[name] for name in (room, *bends(room, below, level), below)])
        for room, below in _arrows(imports)
    ]
    return [*arrows, *(_box(boxes[room], imports[room], room in used) for room in imports)]


def _arrow(path: Sequence[Room]) -> str:
    """A curve from the bottom of the first box, through the bends, to the top of the last."""
    first, *passed, last = path
    start = first.x + _towards((passed or [last])[0].x, first)
    end = last.x + _towards((passed or [first])[-1].x, last)
    stops = [(start, first.y + BOX)]
    for bend in passed:
        stops += [(bend.x, bend.y), (bend.x, bend.y + BOX)]
    stops.append((end, last.y - 2))
    drawn = f"M{start:.0f} {first.y + BOX:.0f}"
    for (x1, y1), (x2, y2) in pairwise(stops):
        half = (y1 + y2) / 2
        drawn += f"C{x1:.0f} {half:.0f} {x2:.0f} {half:.0f} {x2:.0f} {y2:.0f}"
    return (
        f'<path d="{drawn}" fill="none" stroke="{PALE}" stroke-width="1.4" '
        'marker-end="url(#head)"/>'
    )


def _towards(x: float, box: Room) -> float:
    """How far from a box's middle an arrow to or from `x` touches it."""
    return max(-box.width / 3, min(box.width / 3, (x - box.x) / 12))


def _box(box: Room, imports: frozenset[str], used: bool) -> str:
    words = f"{box.name} imports {', '.join(sorted(imports)) or 'no other room'}"
    edge, stroke = (SHARED, 2.5) if used else (INK, 1.5)
    return (
        f'<g><title>{escape(words)}</title><rect x="{box.x - box.width / 2:.0f}" y="{box.y:.0f}" '
        f'width="{box.width:.0f}" height="{BOX}" rx="7" fill="#f4f2ff" stroke="{edge}" '
        f'stroke-width="{stroke}"/><text x="{box.x:.0f}" y="{box.y + 22:.0f}" '
        f'text-anchor="middle" fill="{INK}">{escape(box.name)}</text></g>'
    )


def main(arguments: Sequence[str]) -> int:
    """Write the drawing, or compare the tracked one; gives the exit status."""
    drawing = draw()
    if "--check" in arguments:
        return int(not DRAWING.is_file() or DRAWING.read_text(encoding="utf-8") != drawing)
    DRAWING.write_text(drawing, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
