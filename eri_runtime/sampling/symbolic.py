"""`Linear`: a linear combination of named symbols, on which a sampler can run symbolically."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from eri_runtime.errors import UsageError


@dataclass(frozen=True)
class Linear:
    """A linear combination Σ coefficient·symbol.

    Supports linear operations only: `+`, `−`, and `*` or `/` by a number. Others raise an error.

    Attributes:
        terms: The coefficients by symbol.
    """

    terms: Mapping[str, float] = field(default_factory=dict)

    # refuse NumPy's ufuncs, which would treat this object as an array of objects
    __array_ufunc__: ClassVar[None] = None

    @staticmethod
    def symbol(name: str) -> Linear:
        """Returns the combination 1·name."""
        return Linear({name: 1.0})

    def __getitem__(self, name: str) -> float:
        return self.terms.get(name, 0.0)

    def __add__(self, other: object) -> Linear:
        if not isinstance(other, Linear):
            raise _not_linear(f"a sum with {type(other).__name__}")
        names = dict.fromkeys([*self.terms, *other.terms])
        return Linear({name: self[name] + other[name] for name in names})

    def __mul__(self, scalar: object) -> Linear:
        if not isinstance(scalar, int | float):
            raise _not_linear(f"a product with {type(scalar).__name__}")
        return Linear({name: scalar * value for name, value in self.terms.items()})

    def __truediv__(self, scalar: object) -> Linear:
        if not isinstance(scalar, int | float):
            raise _not_linear(f"a quotient with {type(scalar).__name__}")
        return Linear({name: value / scalar for name, value in self.terms.items()})

    def __sub__(self, other: Linear) -> Linear:
        return self + -other

    def __neg__(self) -> Linear:
        return self * -1.0

    __rmul__ = __mul__


def _not_linear(what: str) -> UsageError:
    """Returns the error for an operation that is not linear."""
    expected = "sums, and products with a number"
    fix = "an algorithm that needs more cannot be a table"
    return UsageError("a sampler's arithmetic", got=what, expected=expected, fix=fix)
