"""Any number of rows through a graph that takes only so many at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from eri_runtime.spec import ShapeRange

Arrays = Mapping[str, NDArray]


def in_pieces(
    run: Callable[[Arrays], Arrays], rows: ShapeRange, inputs: Arrays, shared: Arrays | None = None
) -> dict[str, NDArray]:
    """The outputs for `inputs` (N, …) of a graph that takes `rows`; `shared` inputs have no rows.

    The last piece is filled up with copies of its last row, which are dropped.
    """
    total = len(next(iter(inputs.values())))
    made = []
    for begin in range(0, total, rows.max):
        piece = {name: value[begin : begin + rows.max] for name, value in inputs.items()}
        count = min(rows.max, total - begin)
        piece = {name: _filled(value, rows.min) for name, value in piece.items()}
        outputs = run({**piece, **(shared or {})})
        made.append({name: value[:count] for name, value in outputs.items()})
    return {name: np.concatenate([each[name] for each in made]) for name in made[0]}


def _filled(rows: NDArray, least: int) -> NDArray:
    spare = least - len(rows)
    return np.concatenate([rows, rows[-1:].repeat(spare, 0)]) if spare > 0 else rows
