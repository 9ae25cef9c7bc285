"""Cuts a weighted text into windows of tokens, each as long as the text encoder reads.

A CLIP reads 77 tokens, 75 of the text and two special ones. A longer text takes several windows,
whose embeddings are put one behind the other. The rules, and `COMMA_REACH`, are those of
`modules/sd_hijack_clip.py` of AUTOMATIC1111's stable-diffusion-webui.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eri_runtime.text.syntax import Piece, WeightedText
from eri_runtime.text.tokenizer import PromptTokenizer

COMMA_REACH = 20  # a window that is full ends at its last comma, if that is so near its end


@dataclass(frozen=True, eq=False)
class Windows:
    """The tokens of one text.

    Attributes:
        ids: Token ids (n, length) int64.
        weights: The weight of each token (n, length) float64; 1 for special tokens and padding.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float64]


@dataclass
class _Cutter:
    """Fills windows of `size` tokens of one text."""

    size: int
    comma: int | None
    windows: list[tuple[list[int], list[float]]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    last_comma: int | None = None

    def add(self, rows: Sequence[int], weight: float) -> None:
        """Adds one token, whose rows stay in one window."""
        if rows == (self.comma,):
            self.last_comma = len(self.ids)
        elif len(self.ids) == self.size and self.last_comma is not None:
            self._move_behind_comma(self.last_comma + 1)
        if len(self.ids) + len(rows) > self.size:
            self.end()
        self.ids += rows
        self.weights += [weight] * len(rows)

    def _move_behind_comma(self, cut: int) -> None:
        """Ends the window at its last comma and takes what follows into the next, if it is near."""
        if self.size - (cut - 1) > COMMA_REACH:
            return
        ids, weights = self.ids[cut:], self.weights[cut:]
        self.ids, self.weights = self.ids[:cut], self.weights[:cut]
        self.end()
        self.ids, self.weights = ids, weights

    def end(self) -> None:
        """Ends the window."""
        self.windows.append((self.ids, self.weights))
        self.ids, self.weights, self.last_comma = [], [], None


def cut_windows(tokenizer: PromptTokenizer, text: WeightedText) -> Windows:
    """Returns the windows of a text: at least one, and as many as `text.windows`.

    Each `BREAK` begins a new one. What is in a window beside the text is as in
    `PromptTokenizer.__call__`.
    """
    front, end = tokenizer.ends
    length = tokenizer.spec.max_length
    commas = tokenizer.tokens(",")
    comma = commas[0][0] if len(commas) == 1 and len(commas[0]) == 1 else None
    cutter = _Cutter(length - len(front) - 1, comma)
    for i, group in enumerate(text.groups):
        if i:
            cutter.end()
        for piece in group:
            for rows in tokenizer.tokens(piece.text):
                cutter.add(rows, piece.weight)
    if cutter.ids or not cutter.windows:
        cutter.end()
    while len(cutter.windows) < text.windows:
        cutter.end()
    return _filled(cutter.windows, front, end, tokenizer.spec.pad_id, length)


def one_window(
    tokenizer: PromptTokenizer, pieces: Sequence[Piece], length: int
) -> tuple[Windows, bool]:
    """Returns one window of `length` tokens (1, length), and whether it holds the whole text."""
    front, end = tokenizer.ends
    most = length - len(front) - 1
    tokens = [
        (row, piece.weight)
        for piece in pieces
        for rows in tokenizer.tokens(piece.text)
        for row in rows
    ]
    ids, weights = [row for row, _ in tokens[:most]], [weight for _, weight in tokens[:most]]
    window = _filled([(ids, weights)], front, end, tokenizer.spec.pad_id, length)
    return window, len(tokens) <= most


def _filled(
    windows: Sequence[tuple[list[int], list[float]]],
    front: Sequence[int],
    end: int,
    pad: int,
    length: int,
) -> Windows:
    """Returns windows with their special tokens and padding."""
    ids = np.full((len(windows), length), pad, np.int64)
    weights = np.ones((len(windows), length))
    for i, (own, factors) in enumerate(windows):
        row = [*front, *own, end]
        ids[i, : len(row)] = row
        weights[i, len(front) : len(front) + len(own)] = factors
    return Windows(ids, weights)
