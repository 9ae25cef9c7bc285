"""Compares tensors with those of a weights file: names, types, shapes and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import TensorFile
from eri_runtime.errors import UnknownNameError, UsageError
from eri_runtime.executors import Arrays

CHUNK = 1 << 20  # bytes compared at once
PROBE = 1 << 12  # bytes compared first: most weights that differ do so there
SHOWN = 20  # names that a message lists


def check_tensors(component: str, tensors: Arrays, stored: TensorFile) -> None:
    """Raises `UsageError` for a tensor that the file does not have in this type and shape."""
    check_names(component, tensors, stored)
    for name, values in tensors.items():
        expected = stored[name]
        if (values.dtype, values.shape) != (expected.dtype, expected.shape):
            raise UsageError(
                f"{component}: {name}", got=_described(values), expected=_described(expected)
            )


def check_names(component: str, tensors: Mapping[str, object], stored: TensorFile) -> None:
    """Raises `UnknownNameError`, which lists the names that the file does not have."""
    unknown = [name for name in tensors if name not in stored]
    if unknown:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        got = f"{len(unknown)} unknown: {', '.join(map(str, unknown[:SHOWN]))}{more}"
        first = ", ".join(list(stored)[:2])
        expected = f"names of its weights file, such as {first}"
        raise UnknownNameError(f"weights of {component}", got=got, expected=expected)


def same_bytes(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Returns whether two arrays of one type and shape hold the same bits, also of NaN and −0."""
    if one is other:
        return True
    first, second = (np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (one, other))
    return np.array_equal(first[:PROBE], second[:PROBE]) and all(
        np.array_equal(first[i : i + CHUNK], second[i : i + CHUNK])
        for i in range(PROBE, len(first), CHUNK)
    )


def is_immutable(values: NDArray[Any]) -> bool:
    """Returns whether nobody can write to an array: it owns its memory and is read-only."""
    return values.flags.c_contiguous and values.flags.owndata and not values.flags.writeable


def _described(values: NDArray[Any]) -> str:
    """Returns type and shape for a message."""
    return f"{values.dtype} {values.shape}"
