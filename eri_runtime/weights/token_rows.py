"""Rows of a CLIP's table of token embeddings that hold the embeddings of new tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import round_to
from eri_runtime.executors import Arrays

TABLE = "token_embedding.weight"  # ends the table's name
Rows = Mapping[int, NDArray[np.float32]]
"""Embeddings (width,) float32 by row."""


def token_table(names: Iterable[str]) -> str:
    """Returns the name of a CLIP's table of token embeddings, or "" if there is none."""
    return next((name for name in names if name.endswith(TABLE)), "")


def with_rows(component: str, stored: Arrays, weights: Arrays, rows: Rows) -> Arrays:
    """Returns `weights` with the table of embeddings in which `rows` are replaced.

    Args:
        component: The text encoder, for errors.
        stored: The weights of its file.
        weights: Those that differ from the stored ones.
        rows: The new rows; `weights` itself is returned if there are none.

    Raises:
        NonFiniteError: If a value is too large for the table's type.
    """
    if not rows:
        return weights
    name = token_table(stored)
    table = np.array(weights.get(name, stored[name]))
    for row, vector in rows.items():
        table[row] = round_to(f"{component}: {name}", vector, table.dtype)
    table.setflags(write=False)  # so that `LiveWeights` need not copy it
    return {**weights, name: table}
