"""Polynomials in the sizes of a graph's inputs: the bytes of tensors whose sizes are not known yet.

A polynomial maps each monomial, the sorted names of its factors, to its coefficient.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping

Monomial = tuple[str, ...]
Polynomial = Mapping[Monomial, float]


def constant(value: float) -> Polynomial:
    """Returns a constant polynomial."""
    return {(): value} if value else {}


def variable(name: str) -> Polynomial:
    """Returns the polynomial of one variable."""
    return {(name,): 1.0}


def plus(a: Polynomial, b: Polynomial, times: float = 1.0) -> Polynomial:
    """Returns a + times·b, without terms that vanish."""
    total = dict(a)
    for monomial, value in b.items():
        total[monomial] = total.get(monomial, 0.0) + times * value
    return {monomial: value for monomial, value in total.items() if value}


def product(factors: Iterable[Polynomial]) -> Polynomial:
    """Returns the product of all factors; 1 for none."""
    total = constant(1.0)
    for factor in factors:
        terms: dict[Monomial, float] = {}
        for (left, a), (right, b) in ((x, y) for x in total.items() for y in factor.items()):
            monomial = tuple(sorted(left + right))
            terms[monomial] = terms.get(monomial, 0.0) + a * b
        total = terms
    return total


def value_at(polynomial: Polynomial, sizes: Mapping[str, float]) -> float:
    """Returns a polynomial's value; raises `KeyError` for a variable without a size."""
    return sum(
        value * math.prod(sizes[name] for name in monomial)
        for monomial, value in polynomial.items()
    )


def below(a: Polynomial, b: Polynomial) -> bool:
    """Returns whether no coefficient of `a` exceeds that of `b`: then a ≤ b at all sizes ≥ 0."""
    return all(a.get(name, 0.0) <= b.get(name, 0.0) for name in {*a, *b})


def parse(text: str, symbols: Mapping[str, Polynomial]) -> Polynomial:
    """Parses a tracer's expression of sizes, such as `s2*((s30//2))`, into a polynomial.

    `symbols` has a polynomial for each of its names. Division does not round, so the result is an
    upper bound of a floor division. Raises `ValueError` for an expression that is no polynomial
    and for an unknown symbol.
    """
    return _of(ast.parse(text, mode="eval").body, symbols)


def _of(node: ast.expr, symbols: Mapping[str, Polynomial]) -> Polynomial:
    match node:
        case ast.Constant(value=int(value)):
            return constant(float(value))
        case ast.Name(id=name) if name in symbols:
            return symbols[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return plus({}, _of(operand, symbols), -1.0)
        case ast.BinOp(left=left, op=op, right=right):
            return _combined(_of(left, symbols), op, _of(right, symbols))
    raise ValueError(f"{ast.unparse(node)} is no polynomial in {', '.join(symbols)}")


def _combined(left: Polynomial, op: ast.operator, right: Polynomial) -> Polynomial:
    match op:
        case ast.Add():
            return plus(left, right)
        case ast.Sub():
            return plus(left, right, -1.0)
        case ast.Mult():
            return product((left, right))
        case ast.FloorDiv() | ast.Div() if len(right) == 1:
            return _divided(left, *next(iter(right.items())))
        case ast.Pow() if not any(right) and right.get((), 0.0) in range(1, 9):
            return product([left] * int(right[()]))
    raise ValueError(f"{type(op).__name__} of {left} and {right} is no polynomial")


def _divided(left: Polynomial, by: Monomial, value: float) -> Polynomial:
    """Divides by the monomial `by` times `value`; raises `ValueError` for a remainder."""
    terms = {}
    for monomial, coefficient in left.items():
        rest = list(monomial)
        for name in by:
            if name not in rest:
                raise ValueError(f"{left} is no multiple of {by}")
            rest.remove(name)
        terms[tuple(rest)] = coefficient / value
    return terms
