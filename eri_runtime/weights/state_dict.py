"""Converts a caller's weights, from NumPy, torch or a file, to the types of a weights file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import TensorFile, read_tensors, round_to
from eri_runtime.checks import to_numpy
from eri_runtime.errors import NonFiniteError, SizeError, UsageError, short
from eri_runtime.weights.tensor_checks import check_names

FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)

StateDict = Mapping[str, Any]
"""Arrays, or a framework's tensors, by name."""


def to_stored_types(component: str, tensors: object, stored: TensorFile) -> dict[str, NDArray[Any]]:
    """Converts weights to the types of a component's weights file.

    Args:
        component: The component, for messages.
        tensors: A `StateDict` by the names of the weights file, or the path of a safetensors file.
        stored: The tensors of the weights file.

    Returns:
        Arrays in the stored types and shapes, by name; each is rounded at most once.

    Raises:
        UnknownNameError: If `stored` lacks some of the names; the message lists them.
        SizeError: If a tensor has another shape.
        UsageError: If a tensor's type differs and is not a float of 16 to 64 bits.
        NonFiniteError: If a value is NaN, Inf, or too large for the stored type.
        DamagedWeightsError: If the file is not a valid safetensors file.
    """
    if isinstance(tensors, str | Path):
        tensors = read_tensors(tensors)
    elif not isinstance(tensors, Mapping):
        expected = "a mapping of names to arrays, or a safetensors file"
        raise UsageError(f"weights of {component}", got=short(tensors), expected=expected)
    check_names(component, tensors, stored)
    return {
        name: _convert(f"{component}: {name}", values, stored[name])
        for name, values in tensors.items()
    }


def _convert(where: str, values: Any, stored: NDArray[Any]) -> NDArray[Any]:
    """Converts one tensor to the type of `stored`, rounding it once if the types differ."""
    array = to_numpy(where, values)
    if array.shape != stored.shape:
        raise SizeError(where, got=array.shape, expected=stored.shape)
    if array.dtype != stored.dtype:
        if not all(each.dtype in FLOATS for each in (array, stored)):
            raise UsageError(where, got=array.dtype, expected=f"{stored.dtype}, or another float")
        with np.errstate(over="ignore"):  # `round_to` raises for Inf, with the tensor's name
            narrow = array.astype(np.float32, copy=False)
        return round_to(where, narrow, stored.dtype)
    if array.dtype in FLOATS and not np.isfinite(array).all():
        raise NonFiniteError(where, got="NaN or Inf", expected="finite numbers")
    return array
