"""Checks of arguments: each returns the value as a plain `float`, `int`, `str` or NumPy array.

Every check takes the argument's name first, for the message of the error it raises.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from math import isfinite
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import NonFiniteError, UnknownNameError, UsageError, nearest, short

NOT_NEGATIVE = "a finite number, 0 or more"

Scalar = TypeVar("Scalar", bound=np.generic)
Kind = TypeVar("Kind")
Called = TypeVar("Called", bound=Callable[..., Any])


def real(
    name: str,
    value: object,
    expected: str,
    allowed: Callable[[float], bool],
    fix: str | None = None,
) -> float:
    """Returns a real number as a float.

    Raises `UsageError` if `value` is not a real number (a bool is none) or not `allowed`.
    """
    try:
        number = float(value) if not isinstance(value, bool) and isinstance(value, Real) else None
    except OverflowError:  # an int larger than the largest float
        number = None
    if number is None or not allowed(number):
        raise UsageError(name, got=short(value), expected=expected, fix=fix)
    return number


def finite(name: str, value: object) -> float:
    """Returns a finite number as a float; raises `UsageError` for anything else."""
    return real(name, value, "a finite number", isfinite)


def not_negative(name: str, value: object) -> float:
    """Returns a finite number, 0 or more, as a float; raises `UsageError` for anything else."""
    return real(name, value, NOT_NEGATIVE, lambda number: isfinite(number) and number >= 0)


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Returns an integer from `low` to `high` (default: no upper limit) as an int.

    Accepts Python and NumPy integers, but no bool. Raises `UsageError` for anything else.
    """
    number = None
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        with suppress(TypeError):  # an array of floats has `__index__` too
            number = operator.index(value)
    if number is None or number < low or (high is not None and number > high):
        expected = f"an integer, {low} or more" if high is None else f"an integer, {low} to {high}"
        raise UsageError(name, got=short(value), expected=expected)
    return number


def string(name: str, value: object) -> str:
    """Returns a string unchanged; raises `UsageError` for anything else."""
    if not isinstance(value, str):
        raise UsageError(name, got=short(value), expected="a string")
    return value


def text(name: str, value: object) -> str:
    """Returns a string that UTF-8 can encode; raises `UsageError` for anything else."""
    checked = string(name, value)
    try:
        checked.encode()
    except UnicodeEncodeError as error:
        expected = "text in UTF-8, without lone surrogates"
        raise UsageError(name, got=short(checked), expected=expected) from error
    return checked


def boolean(name: str, value: object) -> bool:
    """Returns True or False, which 1 and 0 mean too; raises `UsageError` for anything else."""
    if isinstance(value, bool | np.bool_) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise UsageError(name, got=short(value), expected="True or False")


def one_of(name: str, value: object, names: Collection[str]) -> str:
    """Returns one of these names; raises `UnknownNameError` for anything else."""
    if isinstance(value, str) and value in names:
        return value
    raise UnknownNameError(name, got=short(value), expected=f"one of {', '.join(names)}")


def did_you_mean(name: object, names: Collection[str]) -> str | None:
    """Returns "did you mean …?" with the name that is most like `name`, or None if none is."""
    near = nearest(name, names) if isinstance(name, str) else None
    return None if near is None else f"did you mean `{near}`?"


def instance(name: str, value: object, kind: type[Kind], expected: str | None = None) -> Kind:
    """Returns an object of a class; raises `UsageError` for anything else."""
    if isinstance(value, kind):
        return value
    expected = expected or f"a {kind.__name__}"
    raise UsageError(name, got=short(value), expected=expected)


def function(name: str, value: Called, expected: str) -> Called:
    """Returns a function; raises `UsageError` for anything that cannot be called."""
    if callable(value):
        return value
    raise UsageError(name, got=short(value), expected=expected)


def items(name: str, value: Any, expected: str) -> list[Any]:
    """Returns the items of a list, or of anything else that has some, but no text or mapping.

    Raises `UsageError` for anything else.
    """
    if not isinstance(value, str | bytes | Mapping):
        with suppress(TypeError):  # no iterable, or an array of no dimension
            return list(value)
    raise UsageError(name, got=short(value), expected=expected)


def mapping(name: str, value: object, expected: str) -> Mapping[str, Any]:
    """Returns a mapping whose keys are texts; raises `UsageError` for anything else."""
    if not isinstance(value, Mapping):
        raise UsageError(name, got=short(value), expected=expected)
    text_keys(name, value)
    return value


def path(name: str, value: object) -> Path:
    """Returns a `Path`; raises `UsageError` for anything that no file can have as its path."""
    if isinstance(value, str | PathLike):
        with suppress(TypeError, UnicodeEncodeError):  # bytes, lone surrogates
            given = Path(value)
            if str(given) and b"\0" not in os.fsencode(given):
                return given
    raise UsageError(name, got=short(value), expected="a path")


def text_keys(name: str, mapping: Mapping[Any, Any]) -> None:
    """Raises `UsageError` for the first key of a mapping that is not a string."""
    for key in mapping:
        if not isinstance(key, str):
            raise UsageError(name, got=f"the key {short(key)}", expected="strings as keys")


def to_numpy(name: str, value: Any) -> NDArray[Any]:
    """Converts an array, or a tensor of another framework on any device, to a NumPy array.

    Converts bfloat16 to float32. Raises `UsageError` if the value cannot be converted.
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
    """Returns an array of finite floats in its own dtype.

    Raises `UsageError` for another dtype, `NonFiniteError` for NaN or Inf.
    """
    return check_finite(name, _array(name, value, "f", "an array of floats"))


def float32(name: str, value: object) -> NDArray[np.float32]:
    """Converts any array of finite numbers to float32.

    Raises `UsageError` for anything else, `NonFiniteError` for NaN, Inf or float32 overflow.
    """
    with np.errstate(over="ignore"):
        array = _array(name, value, "fiu", "an array of numbers").astype(np.float32)
    return check_finite(name, array)


def integers(name: str, value: object, low: int, high: int) -> NDArray[np.integer]:
    """Returns an array of integers from `low` to `high`; raises `UsageError` for anything else."""
    expected = f"integers, {low} to {high}"
    array = _array(name, value, "iu", expected)
    if ((array < low) | (array > high)).any():
        raise UsageError(name, got=short(value), expected=expected)
    return array


def check_finite(where: str, array: NDArray[Scalar]) -> NDArray[Scalar]:
    """Returns `array` unchanged; raises `NonFiniteError` if it contains NaN or Inf."""
    if not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        fix = "export with --precision fp32, or lower the guidance"
        got = f"NaN or Inf in {bad} of {array.size} values"
        raise NonFiniteError(where, got=got, expected="finite numbers", fix=fix)
    return array


def _array(name: str, value: object, kinds: str, expected: str) -> NDArray[Any]:
    """Converts `value` to an array; raises `UsageError` if its dtype's kind is not in `kinds`."""
    try:
        array: NDArray[Any] = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors with gradients
        raise UsageError(name, got=short(str(error)), expected=expected) from error
    if array.dtype.kind not in kinds:
        raise UsageError(name, got=f"an array of {array.dtype}", expected=expected)
    return array
