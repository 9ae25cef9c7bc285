"""A caller's numbers and arrays, checked: a plain `float`, `int` or array comes back."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import isfinite
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import UsageError, short
from eri_runtime.executors.base import check_finite

NOT_NEGATIVE = "a finite number, 0 or more"


def real(
    name: str,
    value: object,
    expected: str,
    allowed: Callable[[float], bool],
    fix: str | None = None,
) -> float:
    """`value` as a float, if it is a real number that is `allowed`; else a `UsageError`."""
    try:
        number = float(value) if _is_number(value) and isinstance(value, Real) else None
    except OverflowError:  # an int beyond every float
        number = None
    if number is None or not allowed(number):
        raise UsageError(name, got=short(value), expected=expected, fix=fix)
    return number


def finite(name: str, value: object) -> float:
    """`value` as a float, if it is a finite number; else a `UsageError`."""
    return real(name, value, "a finite number", isfinite)


def not_negative(name: str, value: object) -> float:
    """`value` as a float, if it is finite and 0 or more; else a `UsageError`."""
    return real(name, value, NOT_NEGATIVE, lambda number: isfinite(number) and number >= 0)


def whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """`value` as an int, if it is an integer from `low` to `high`; else a `UsageError`."""
    try:
        number = operator.index(value) if _is_number(value) else None  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        expected = f"an integer, {low} or more" if high is None else f"an integer, {low} to {high}"
        raise UsageError(name, got=short(value), expected=expected)
    return number


def from_anywhere(name: str, value: Any) -> NDArray[Any]:
    """`value` as a NumPy array: an array, or a framework's tensor, from whatever device.

    bfloat16, which NumPy has not, becomes float32. Raises `UsageError` for anything else.
    """
    try:
        if not isinstance(value, np.ndarray) and hasattr(value, "detach"):
            value = value.detach().cpu()
            value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
        array = np.asarray(value)
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        got = f"{type(value).__name__}: {error}"
        expected = "a NumPy array, or a tensor with detach().cpu().numpy()"
        raise UsageError(name, got=got, expected=expected) from error


def floats(name: str, value: object) -> NDArray[np.floating]:
    """`value` as an array of finite floats, of the type it has.

    Raises `UsageError` for anything else, `NonFiniteError` for NaN or Inf.
    """
    return check_finite(name, _array(name, value, "f", "an array of floats"))


def float32(name: str, value: object) -> NDArray[np.float32]:
    """`value`, any array of finite numbers, as float32.

    Raises `UsageError` for anything else, `NonFiniteError` for NaN, Inf or a number too large.
    """
    with np.errstate(over="ignore"):
        array = _array(name, value, "fiu", "an array of numbers").astype(np.float32)
    return check_finite(name, array)


def integers(name: str, value: object, low: int, high: int) -> NDArray[np.integer]:
    """`value` as an array of integers from `low` to `high`; else a `UsageError`."""
    expected = f"integers, {low} to {high}"
    array = _array(name, value, "iu", expected)
    if ((array < low) | (array > high)).any():
        raise UsageError(name, got=short(value), expected=expected)
    return array


def _array(name: str, value: object, kinds: str, expected: str) -> NDArray:
    """`value` as an array whose dtype is of the `kinds`."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors with gradients
        raise UsageError(name, got=short(str(error)), expected=expected) from error
    if array.dtype.kind not in kinds:
        raise UsageError(name, got=f"an array of {array.dtype}", expected=expected)
    return array


def _is_number(value: object) -> bool:
    return not isinstance(value, bool)
