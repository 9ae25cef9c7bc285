"""Builds SVG as text with small pure functions.

Charts fill the width of their container: x is in percent of it and y in pixels, so text keeps its
size on a phone and in print. Colours are CSS classes, which the page's style defines for light and
dark mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import floor, log10

HATCH = "hatch"


def element(name: str, inner: str = "", **attributes: object) -> str:
    """Returns `<name a="b">inner</name>`; `class_` becomes `class`, other `_` become `-`."""
    named = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    text = "".join(f' {key}="{escape(str(value))}"' for key, value in named if value is not None)
    return f"<{name}{text}>{inner}</{name}>" if inner else f"<{name}{text}/>"


def figure(identity: str, title: str, description: str, height: float, inner: str) -> str:
    """Returns a whole drawing, with a title and a description for screen readers."""
    titles = element("title", escape(title), id=f"{identity}-t")
    titles += element("desc", escape(description), id=f"{identity}-d")
    labelled = f"{identity}-t {identity}-d"
    return element(
        "svg", titles + inner, role="img", width="100%", height=f"{height:g}",
        aria_labelledby=labelled,
    )  # fmt: skip


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> str:
    """Returns text at x percent with its baseline at y."""
    return element(
        "text", escape(words), x=percent(x), y=f"{y:g}", class_=class_ or None, text_anchor=anchor
    )


def rect(x: float, y: float, width: float, height: float, class_: str, **more: str) -> str:
    """Returns a rectangle, x and width in percent."""
    return element(
        "rect", x=percent(x), y=f"{y:g}", width=percent(width), height=f"{height:g}",
        class_=class_, **more,
    )  # fmt: skip


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """Returns a line, x in percent."""
    return element(
        "line", x1=percent(x1), y1=f"{y1:g}", x2=percent(x2), y2=f"{y2:g}", class_=class_
    )


def dot(x: float, y: float, class_: str, radius: float = 2.5) -> str:
    """Returns a dot at x percent."""
    return element("circle", cx=percent(x), cy=f"{y:g}", r=f"{radius:g}", class_=class_)


def hatch(identity: str) -> str:
    """Returns a pattern of stripes for rows that do not count, used as `fill="url(#…)"`."""
    stripe = element("path", d="M0 6 L6 0", class_="stripe")
    pattern = element(
        "pattern", stripe, id=identity, width="6", height="6", patternUnits="userSpaceOnUse"
    )
    return element("defs", pattern)


def stretched(y: float, height: float, inner: str) -> str:
    """Returns a nested drawing of 100 by 100 units, stretched to the width and `height` pixels."""
    return element(
        "svg", inner, x="0", y=f"{y:g}", width="100%", height=f"{height:g}",
        viewBox="0 0 100 100", preserveAspectRatio="none",
    )  # fmt: skip


def path(points: Sequence[tuple[float, float]], class_: str, *, closed: bool = False) -> str:
    """Returns a line through points of a stretched drawing; closed, the area below it."""
    steps = [f"{'L' if i else 'M'}{x:.2f} {y:.2f}" for i, (x, y) in enumerate(points)]
    if closed:
        steps += [f"L{points[-1][0]:.2f} 100", f"L{points[0][0]:.2f} 100", "Z"]
    return element("path", d=" ".join(steps), class_=class_, vector_effect="non-scaling-stroke")


def percent(value: float) -> str:
    """Formats a percentage as `12.5%`, without trailing zeros."""
    return f"{value:.3f}".rstrip("0").rstrip(".") + "%"


def ticks(most: float, count: int = 4) -> list[float]:
    """Returns about `count` round numbers from 0 to at most `most`."""
    if most <= 0:
        return [0.0]
    rough = most / count
    scale = 10.0 ** floor(log10(rough))
    step = next(scale * each for each in (1, 2, 2.5, 5, 10) if scale * each >= rough)
    return [step * i for i in range(int(most / step + 1e-9) + 1)]


def joined(parts: Iterable[str]) -> str:
    """Returns the parts one after the other."""
    return "".join(parts)
