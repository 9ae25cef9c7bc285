"""A graph over a picture in overlapping tiles, which are blended where they overlap.

All tiles have one size, so that an engine meets one shape, and are spread evenly, so that overlaps
are as wide as the number of tiles allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
OVERLAP = 1 / 4  # of a tile, at least


@dataclass(frozen=True)
class Cut:
    """One side of a picture in tiles of `length`, each from one of `begins`."""

    begins: tuple[int, ...]
    length: int

    @property
    def total(self) -> int:
        """The length of the side."""
        return self.begins[-1] + self.length

    def weights(self, scale: int = 1) -> Iterator[Array]:
        """What each tile counts along the side, (length·scale,); where tiles overlap, 1 together.

        A tile rises linearly over its overlap with the one before, and falls over that with the
        next. Where three overlap they would be more than 1 together, and are divided by that.
        """
        spans = [slice(begin * scale, (begin + self.length) * scale) for begin in self.begins]
        shares, total = np.ones((len(spans), self.length * scale)), np.zeros(self.total * scale)
        for i, (one, next_one) in enumerate(pairwise(spans)):
            rising = _rise(one.stop - next_one.start)
            shares[i + 1, : len(rising)] *= rising
            shares[i, self.length * scale - len(rising) :] *= rising[::-1]
        for span, share in zip(spans, shares, strict=True):
            total[span] += share
        for span, share in zip(spans, shares, strict=True):
            yield (share / total[span]).astype(np.float32)


def cut(total: int, length: int) -> Cut:
    """The fewest tiles of `length` that cover a side of `total` and overlap by `OVERLAP` or more.

    One tile of `total` where that is no longer than `length`.
    """
    if total <= length:
        return Cut((0,), total)
    step = length - min(math.ceil(OVERLAP * length), length - 1)
    last = math.ceil((total - length) / step)
    return Cut(tuple(i * (total - length) // last for i in range(last + 1)), length)


def in_tiles(
    run: Callable[[Array], Mapping[str, Array]],
    whole: Array,
    rows: Cut,
    columns: Cut,
    *,
    given: int = 1,
    made: int = 1,
) -> dict[str, Array]:
    """The outputs of `run` for `whole` (B, C, H, W), of which it sees one tile at a time.

    `given` values of a side of `whole`, and `made` of its outputs, stand for one of the cuts. Every
    tile is added to the outputs as it is made, so memory holds those and one tile; a fixed order
    gives the same bits for the same tiles.
    """
    outputs: dict[str, Array] = {}
    down, across = (
        list(zip(side.begins, side.weights(made), strict=True)) for side in (rows, columns)
    )
    for (top, high), (left, wide) in product(down, across):
        size = rows.length * given, columns.length * given
        seen = _window(whole, top * given, left * given, *size)
        weight = high[:, None] * wide
        for name, tile in run(np.ascontiguousarray(seen)).items():
            if name not in outputs:
                shape = (*tile.shape[:2], rows.total * made, columns.total * made)
                outputs[name] = np.zeros(shape, np.float32)
            target = _window(outputs[name], top * made, left * made, *weight.shape)
            target += weight * tile
    return outputs


def _window(array: Array, top: int, left: int, height: int, width: int) -> Array:
    """A view of a part of (B, C, H, W)."""
    return array[:, :, top : top + height, left : left + width]


def _rise(length: int) -> NDArray[np.float64]:
    """From 0 to 1 over an overlap, which with its mirror image is 1.

    A cosine, or edges that count nothing, come no nearer to the whole: what differs is the
    statistics of a tile's norms (`benchmarks/vae_tiling.py`).
    """
    return (np.arange(length) + 0.5) / length
