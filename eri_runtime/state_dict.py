"""Weights as a caller has them, of NumPy, torch or a file, in the types of a weights file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import from_anywhere
from eri_runtime.errors import NonFiniteError, SizeError, UsageError, short
from eri_runtime.live import check_names
from eri_runtime.tensors import TensorFile, read_tensors, rounded

FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)

StateDict = Mapping[str, Any]


def as_stored(component: str, tensors: object, stored: TensorFile) -> dict[str, NDArray]:
    """A `StateDict` or a safetensors file of one as arrays in the types of `stored`, by its names.

    Raises `UnknownNameError` that lists unknown names, `SizeError` for another shape, `UsageError`
    for what is no float of 16 to 64 bits, `NonFiniteError` for NaN or Inf and for a value too large
    for the stored type, and `DamagedWeightsError` for a file that is none.
    """
    if isinstance(tensors, str | Path):
        tensors = read_tensors(tensors)
    elif not isinstance(tensors, Mapping):
        expected = "a mapping of names to arrays, or a safetensors file"
        raise UsageError(f"weights of {component}", got=short(tensors), expected=expected)
    check_names(component, tensors, stored)
    return {
        name: _as(f"{component}: {name}", values, stored[name]) for name, values in tensors.items()
    }


def _as(where: str, values: Any, wanted: NDArray) -> NDArray:
    """One tensor, rounded once where its type is another."""
    array = from_anywhere(where, values)
    if array.shape != wanted.shape:
        raise SizeError(where, got=array.shape, expected=wanted.shape)
    if array.dtype != wanted.dtype:
        if not all(each.dtype in FLOATS for each in (array, wanted)):
            raise UsageError(where, got=array.dtype, expected=f"{wanted.dtype}, or another float")
        with np.errstate(over="ignore"):  # said below, by name
            narrow = array.astype(np.float32, copy=False)
        return rounded(where, narrow, wanted.dtype)
    if array.dtype in FLOATS and not np.isfinite(array).all():
        raise NonFiniteError(where, got="NaN or Inf", expected="finite numbers")
    return array
