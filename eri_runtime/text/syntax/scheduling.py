"""Texts that change between evaluations: `[from:to:when]`, `[to:when]`, `[from::when]`, `[a|b]`.

`when` is the number of an evaluation of the denoiser, or with a decimal point a share of all of
them. `[a|b]` takes turns. The rules are AUTOMATIC1111's: evaluation k, from 0, has the first text
whose `last` is not below k.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from eri_runtime.text.syntax.number import NUMBER

WHEN = re.compile(rf"\s*({NUMBER}(?:[eE][+-]?\d+)?)\s*", re.ASCII)
DEEPEST = 32  # brackets within brackets; deeper ones are text


class Stage(NamedTuple):
    """A text and how long it holds.

    Attributes:
        last: The last evaluation, counted from 0, that has this text.
        text: The text.
    """

    last: int
    text: str


@dataclass(frozen=True)
class _Scheduled:
    before: _Nodes
    after: _Nodes
    when: str

    def last(self, total: int) -> int:
        """Returns the last evaluation with `before`, at most `total`."""
        value = float(self.when)
        value = value * total if "." in self.when else value
        return int(min(max(value, 0.0), float(total)))


@dataclass(frozen=True)
class _Alternate:
    options: tuple[_Nodes, ...]


_Nodes = tuple[str | _Scheduled | _Alternate, ...]


def parse_schedule(text: str, total: int) -> tuple[Stage, ...]:
    """Returns the texts of `total` evaluations, in order; a text without a schedule is one stage.

    Any text can be parsed: brackets that are no schedule stay as they are, for `parse_emphasis`.
    """
    nodes = _parse(text, 0, len(text), _matches(text), 0)
    stages: list[Stage] = []
    for last in sorted({total, *_lasts(nodes, total)}):
        current = "".join(_at(nodes, last, total))
        if stages and stages[-1].text == current:
            stages.pop()
        stages.append(Stage(last, current))
    return tuple(stages)


def text_at(stages: Sequence[Stage], k: int) -> str:
    """Returns the text of evaluation k, counted from 0."""
    return next((stage.text for stage in stages if k <= stage.last), stages[-1].text)


def _matches(text: str) -> dict[int, int]:
    """Returns the closing bracket of each opening one that has one, by position.

    An escaped bracket is text. A bracket of one kind does not close one of the other.
    """
    pairs, opened, i = {}, list[int](), 0
    while i < len(text):
        if text[i] == "\\":
            i += 1
        elif text[i] in "([":
            opened.append(i)
        elif text[i] in ")]" and opened and text[opened[-1]] + text[i] in ("()", "[]"):
            pairs[opened.pop()] = i
        i += 1
    return pairs


def _parse(text: str, start: int, end: int, pairs: dict[int, int], depth: int) -> _Nodes:
    """Returns the nodes of `text[start:end]`."""
    nodes: list[str | _Scheduled | _Alternate] = []
    i = begun = start
    while i < end:
        if text[i] == "\\":
            i += 2
            continue
        close = pairs.get(i) if text[i] == "[" and depth < DEEPEST else None
        node = None if close is None else _bracket(text, i + 1, close, pairs, depth + 1)
        if node is None or close is None:
            i += 1
            continue
        nodes += [text[begun:i], node]
        i = begun = close + 1
    return (*nodes, text[begun:end])


def _bracket(
    text: str, start: int, end: int, pairs: dict[int, int], depth: int
) -> _Scheduled | _Alternate | None:
    """Returns what square brackets around `text[start:end]` are, or None if they are emphasis."""

    def parse(span: tuple[int, int]) -> _Nodes:
        return _parse(text, *span, pairs, depth)

    parts = _split(text, start, end, ":", pairs)
    when = WHEN.fullmatch(text, *parts[-1])
    if when is not None and len(parts) in (2, 3):
        before = parse(parts[0]) if len(parts) == 3 else ()
        return _Scheduled(before, parse(parts[-2]), when[1])
    options = _split(text, start, end, "|", pairs)
    return _Alternate(tuple(map(parse, options))) if len(options) > 1 else None


def _split(
    text: str, start: int, end: int, mark: str, pairs: dict[int, int]
) -> list[tuple[int, int]]:
    """Returns the spans between marks that are in no bracket and not escaped."""
    spans, i, begun = list[tuple[int, int]](), start, start
    while i < end:
        if text[i] == mark:
            spans.append((begun, i))
            begun = i + 1
        i = pairs.get(i, i + (text[i] == "\\")) + 1
    return [*spans, (begun, end)]


def _lasts(nodes: _Nodes, total: int) -> Iterator[int]:
    """Yields the evaluations after which a text may change."""
    for node in nodes:
        if isinstance(node, _Scheduled):
            if last := node.last(total):
                yield last
            yield from _lasts(node.before + node.after, total)
        elif isinstance(node, _Alternate):
            yield from range(1, total + 1)
            for option in node.options:
                yield from _lasts(option, total)


def _at(nodes: _Nodes, last: int, total: int) -> Iterator[str]:
    """Yields the parts of the text that holds until `last`."""
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, _Scheduled):
            yield from _at(node.before if last <= node.last(total) else node.after, last, total)
        else:
            yield from _at(node.options[(last - 1) % len(node.options)], last, total)
