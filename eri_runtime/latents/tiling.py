"""Runs a graph on an image in overlapping tiles and blends them.

All tiles have the same size, so that an engine sees a single shape, and are evenly spaced, so that
overlaps are as wide as the number of tiles allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
OVERLAP = 1 / 4  # the least overlap, as a fraction of a tile


@dataclass(frozen=True)
class TiledSide:
    """One side of an image, divided into overlapping tiles.

    Attributes:
        starts: The position at which each tile starts, ascending from 0.
        length: The length of every tile.
    """

    starts: tuple[int, ...]
    length: int

    @property
    def total(self) -> int:
        """The length of the whole side."""
        return self.starts[-1] + self.length

    def weights(self, scale: int = 1) -> Iterator[Array]:
        """Yields each tile's blending weights along the side, (length·scale,) float32.

        A tile's weights rise linearly over the overlap with the previous tile and fall linearly
        over the overlap with the next. Dividing by their sum makes them add up to 1 everywhere,
        also where three tiles overlap.
        """
        spans = [slice(begin * scale, (begin + self.length) * scale) for begin in self.starts]
        ramps, total = np.ones((len(spans), self.length * scale)), np.zeros(self.total * scale)
        for i, (span, next_span) in enumerate(pairwise(spans)):
            rising = _rise(span.stop - next_span.start)
            ramps[i + 1, : len(rising)] *= rising
            ramps[i, self.length * scale - len(rising) :] *= rising[::-1]
        for span, ramp in zip(spans, ramps, strict=True):
            total[span] += ramp
        for span, ramp in zip(spans, ramps, strict=True):
            yield (ramp / total[span]).astype(np.float32)


def tile_side(total: int, length: int) -> TiledSide:
    """Divides a side into the fewest tiles of `length` that overlap by at least `OVERLAP`.

    A side whose `total` is at most `length` becomes a single tile of its own length.
    """
    if total <= length:
        return TiledSide((0,), total)
    step = length - min(math.ceil(OVERLAP * length), length - 1)
    last = math.ceil((total - length) / step)
    return TiledSide(tuple(i * (total - length) // last for i in range(last + 1)), length)


def run_in_tiles(
    run: Callable[[Array], Mapping[str, Array]],
    whole: Array,
    rows: TiledSide,
    columns: TiledSide,
    *,
    given: int = 1,
    made: int = 1,
) -> dict[str, Array]:
    """Runs a graph on `whole` one tile at a time and blends the outputs.

    Each tile is added to the outputs as soon as it is computed, so memory holds only the outputs
    and one tile. The order is fixed, so the same tiles give the same bits.

    Args:
        run: Computes the outputs, by name, of one tile (B, C, height, width).
        whole: The whole input, (B, C, H, W).
        rows: The tiles along the height.
        columns: The tiles along the width.
        given: Input values per unit of `rows` and `columns`, along each side.
        made: Output values per unit of `rows` and `columns`, along each side.

    Returns:
        The blended outputs by name, (B, C, rows.total·made, columns.total·made) float32.
    """
    outputs: dict[str, Array] = {}
    down, across = (
        list(zip(side.starts, side.weights(made), strict=True)) for side in (rows, columns)
    )
    for (top, row_weights), (left, column_weights) in product(down, across):
        size = rows.length * given, columns.length * given
        tile_input = _window(whole, top * given, left * given, *size)
        weight = row_weights[:, None] * column_weights
        for name, tile in run(np.ascontiguousarray(tile_input)).items():
            if name not in outputs:
                shape = (*tile.shape[:2], rows.total * made, columns.total * made)
                outputs[name] = np.zeros(shape, np.float32)
            target = _window(outputs[name], top * made, left * made, *weight.shape)
            target += weight * tile
    return outputs


def _window(array: Array, top: int, left: int, height: int, width: int) -> Array:
    """Returns a view of a part of (B, C, H, W)."""
    return array[:, :, top : top + height, left : left + width]


def _rise(length: int) -> NDArray[np.float64]:
    """Returns a linear ramp (length,) from 0 to 1, which adds up to 1 with its mirror image.

    A cosine ramp, or ignoring the tiles' edges, brings the result no closer to the untiled one:
    the difference comes from the statistics of each tile's norms (`benchmarks/vae_tiling.py`).
    """
    ramp: NDArray[np.float64] = (np.arange(length) + 0.5) / length
    return ramp
