"""Runs a graph with a limited batch size on any number of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import ShapeRange
from eri_runtime.executors import Arrays


def run_in_chunks(
    run: Callable[[Arrays], Arrays], rows: ShapeRange, inputs: Arrays, shared: Arrays | None = None
) -> dict[str, NDArray[Any]]:
    """Runs a graph on `inputs` (N, …) in chunks of at most `rows.max` rows.

    A chunk of fewer than `rows.min` rows is padded with copies of its last row; their outputs are
    dropped. `shared` inputs have no batch axis and go to every call. Returns the outputs (N, …).
    """
    if rows.min <= len(next(iter(inputs.values()))) <= rows.max:
        return dict(run({**inputs, **(shared or {})}))
    results = []
    for chunk, count in row_chunks(rows, inputs, shared or {}):
        outputs = run(chunk)
        results.append({name: value[:count] for name, value in outputs.items()})
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def row_chunks(rows: ShapeRange, inputs: Arrays, shared: Arrays) -> Iterator[tuple[Arrays, int]]:
    """Yields the inputs of each chunk of `run_in_chunks`, and its rows that are not padding."""
    total = len(next(iter(inputs.values())))
    for start in range(0, total, rows.max):
        chunk = {name: value[start : start + rows.max] for name, value in inputs.items()}
        chunk = {name: _pad_rows(value, rows.min) for name, value in chunk.items()}
        yield {**chunk, **shared}, min(rows.max, total - start)


def _pad_rows(rows: NDArray[Any], minimum: int) -> NDArray[Any]:
    """Repeats the last row until there are at least `minimum` rows."""
    missing = minimum - len(rows)
    return np.concatenate([rows, rows[-1:].repeat(missing, 0)]) if missing > 0 else rows
