"""Weights of words: `(word)`, `(word:1.3)`, `[word]`; and `BREAK`, which ends a window."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import isfinite
from typing import NamedTuple

from eri_runtime.text.syntax.number import NUMBER

ROUND = 1.1  # a pair of round brackets multiplies by it, a pair of square ones divides
# an escape; a closing bracket with a weight; a bracket; text, which a lone colon may be
TOKEN = re.compile(rf"\\[()\[\]\\]?|:\s*({NUMBER})\s*\)|[()\[\]]|[^\\()\[\]:]+|:", re.ASCII)
BREAK = re.compile(r"\bBREAK\b")


class Piece(NamedTuple):
    """A run of text with one weight.

    Attributes:
        text: The text.
        weight: Factor of its tokens' embeddings; 1 changes nothing.
    """

    text: str
    weight: float


@dataclass(frozen=True)
class WeightedText:
    """A text with weights, which takes as many windows of tokens as it needs.

    Attributes:
        groups: The pieces between `BREAK`s; each group begins a window of its own.
        windows: Least number of windows; missing ones are empty.
    """

    groups: tuple[tuple[Piece, ...], ...]
    windows: int = 1

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The pieces of all groups."""
        return tuple(piece for group in self.groups for piece in group)

    def __str__(self) -> str:
        """Returns the text without its weights, for messages."""
        return " ".join("".join(piece.text for piece in group) for group in self.groups)


@dataclass
class _Parser:
    """The pieces so far and the brackets that are open, each with the piece behind it."""

    texts: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)  # the pieces in front of which a group begins
    opened: dict[str, list[int]] = field(default_factory=lambda: {"(": [], "[": []})

    def add(self, text: str) -> None:
        """Adds text of weight 1, split at `BREAK`."""
        parts = BREAK.split(text)
        for i, part in enumerate(parts):
            if i:
                self.breaks.append(len(self.texts))
                part = part.lstrip()
            self._append(part.rstrip() if i + 1 < len(parts) else part)

    def _append(self, text: str) -> None:
        self.texts.append(text)
        self.weights.append(1.0)

    def open(self, bracket: str) -> None:
        """Opens a bracket."""
        self.opened[bracket].append(len(self.texts))

    def close(self, bracket: str, factor: float) -> None:
        """Closes the last open bracket of a kind: multiplies the weights since then."""
        for i in range(self.opened[bracket].pop(), len(self.weights)):
            self.weights[i] *= factor

    def close_all(self) -> None:
        """Closes what was left open, at the end of the text."""
        for bracket, factor in (("(", ROUND), ("[", 1 / ROUND)):
            while self.opened[bracket]:
                self.close(bracket, factor)

    def groups(self) -> tuple[tuple[Piece, ...], ...]:
        """Returns the pieces of each group; neighbours of one weight are one piece."""
        ends = [*self.breaks, len(self.texts)]
        starts = [0, *self.breaks]
        return tuple(self._group(start, end) for start, end in zip(starts, ends, strict=True))

    def _group(self, start: int, end: int) -> tuple[Piece, ...]:
        merged: list[Piece] = []
        for text, weight in zip(self.texts[start:end], self.weights[start:end], strict=True):
            if merged and merged[-1].weight == weight:
                merged[-1] = Piece(merged[-1].text + text, weight)
            elif text:
                merged.append(Piece(text, weight))
        return tuple(merged)


def parse_emphasis(text: str) -> WeightedText:
    r"""Returns a text's pieces with their weights; any text can be parsed.

    `(a)` multiplies by 1.1, `(a:1.3)` by 1.3, `[a]` by 1/1.1, nested ones multiply each other.
    `\(` and so on are the characters; any other backslash is left out. A bracket that is not closed
    reaches to the end, and one that was not opened is text.
    """
    parser = _Parser()
    for token in TOKEN.finditer(text):
        word, number = token[0], token[1]
        weight = float(number) if number is not None else None
        if word.startswith("\\"):
            parser.add(word[1:])
        elif word in ("(", "["):
            parser.open(word)
        elif weight is not None and isfinite(weight) and parser.opened["("]:
            parser.close("(", weight)
        elif word == ")" and parser.opened["("]:
            parser.close("(", ROUND)
        elif word == "]" and parser.opened["["]:
            parser.close("[", 1 / ROUND)
        else:
            parser.add(word)
    parser.close_all()
    return WeightedText(parser.groups())
