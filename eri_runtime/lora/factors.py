"""From the tensors of one module to its update, each shape checked before anything is multiplied.

Scales, `alpha / rank`, are folded into the last factor. Tucker cores (LoCon's `lora_mid`, LyCORIS's
`t1`, `t2`) are contracted with the inner factor, which leaves a plain product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import LoraError, NonFiniteError, short
from eri_runtime.lora.alphas import Alphas
from eri_runtime.lora.deltas import Delta, Full, Hadamard, Kronecker, LowRank, Matrix
from eri_runtime.lora.keys import Module, Role

FLOATS = tuple(np.dtype(each) for each in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16))
INTEGERS = tuple(np.dtype(each) for each in (np.int32, np.int64))  # of an alpha


@dataclass(frozen=True)
class Factors:
    """The tensors of one module, and the `rows` and `columns` its update must have."""

    module: Module
    tensors: Mapping[str, Any]
    alphas: Alphas
    rows: int
    columns: int

    def has(self, *roles: Role) -> bool:
        """Whether all of them are there."""
        return all(role in self.module.keys for role in roles)

    def read(self, role: Role) -> NDArray[np.float32]:
        """A factor as float32 in memory of its own, so that no file is needed any more."""
        key = self.module.keys.get(role)
        if key is None:
            present = ", ".join(short(each) for each in self.module.keys.values())
            raise LoraError(self.module.name, got=f"only {present}", expected=f"its {role} too")
        return finite(key, self.tensors[key], FLOATS if role != "alpha" else (*FLOATS, *INTEGERS))

    def matrix(self, role: Role) -> Matrix:
        """A factor with all but its first axis as one."""
        values = self.read(role)
        if values.ndim < 2 or not values.size:
            raise self.wrong(role, values.shape, "a matrix or a convolution, not empty")
        return values.reshape(len(values), -1)

    def vector(self, role: Role) -> Matrix:
        """The numbers of a bias or a norm, as a column."""
        values = self.read(role)
        self.expect(role, values.size, self.rows, "a size of")
        return values.reshape(-1, 1)

    def scale(self, rank: int) -> float:
        """What multiplies the product: alpha / rank, alpha being the rank where none is given."""
        if not self.has("alpha"):
            return self.alphas.scale(self.module.name, rank)
        alpha = self.read("alpha")
        if alpha.size != 1:
            raise self.wrong("alpha", alpha.shape, "one number")
        return float(alpha.reshape(())) / rank

    def wrong(self, role: Role, shape: Sequence[int], expected: str) -> LoraError:
        """The error for a factor of a shape that does not fit."""
        key = self.module.keys[role]
        return LoraError(short(key), got=f"shape {short(list(shape))}", expected=expected)

    def expect(self, role: Role, found: int, expected: int, what: str) -> None:
        """Raise `LoraError` where a side of a factor is not what another one needs."""
        if found != expected:
            shape = np.shape(self.tensors[self.module.keys[role]])
            raise self.wrong(role, shape, f"{what} {expected}, not {found}")


class Kind(NamedTuple):
    """An update by its factors: one of `any_of` tells it."""

    any_of: tuple[Role, ...]
    build: Callable[[Factors], Delta]


def finite(key: str, value: Any, dtypes: Sequence[np.dtype[Any]]) -> NDArray[np.float32]:
    """A tensor as new float32; `LoraError` for another type, `NonFiniteError` for NaN or Inf."""
    if not isinstance(value, np.ndarray) or value.dtype not in dtypes:
        got = f"{value.dtype} numbers" if isinstance(value, np.ndarray) else type(value).__name__
        expected = f"an array of {', '.join(each.name for each in dtypes)}"
        raise LoraError(short(key), got=got, expected=expected)
    with np.errstate(over="ignore"):
        values = value.astype(np.float32)
    if values.size and not np.isfinite([values.min(), values.max()]).all():
        raise NonFiniteError(short(key), got="NaN or Inf", expected="finite numbers")
    return values


ALONE: tuple[Role, ...] = ("value", "up_bias", "diff_b")  # changes that need no factors


def build(factors: Factors) -> Delta | None:
    """The update of a module's weight, or None where it has none.

    Raises `LoraError` for factors of two kinds, a missing one, and those that do not fit.
    """
    found = [kind for kind in KINDS if any(factors.has(role) for role in kind.any_of)]
    if len(found) > 1:
        present = ", ".join(short(each) for each in factors.module.keys.values())
        raise LoraError(factors.module.name, got=present, expected="factors of one kind of update")
    if not found and not any(factors.has(role) for role in ALONE):
        factors.read("down")
    return found[0].build(factors) if found else None


def _lora(factors: Factors) -> LowRank:
    up, down = factors.matrix("up"), factors.matrix("down")
    rank = len(down)
    if factors.has("mid"):
        down = _contracted(factors, "mid", down, "down", factors.columns)
    factors.expect("up", up.shape[1], len(down), "a rank of")
    factors.expect("up", len(up), factors.rows, "outputs of")
    factors.expect("down", down.shape[1], factors.columns, "inputs of")
    return LowRank(down, up * np.float32(factors.scale(rank)))


def _contracted(factors: Factors, core: Role, inner: Matrix, role: Role, columns: int) -> Matrix:
    """A Tucker core (r, s, h, w) with its second axis contracted: (r, in * h * w)."""
    values = factors.read(core)
    if values.ndim < 3 or not values.size:
        raise factors.wrong(core, values.shape, "a core of a convolution")
    factors.expect(role, len(inner), values.shape[1], "a rank of")
    area = math.prod(values.shape[2:])
    factors.expect(role, inner.shape[1] * area, columns, "inputs of")
    product = np.einsum("rsk,si->rik", values.reshape(*values.shape[:2], area), inner)
    return product.reshape(len(values), -1)


def _loha(factors: Factors) -> Hadamard:
    halves = (
        _product(factors, "hada_w1_a", "hada_w1_b", "hada_t1", factors.columns),
        _product(factors, "hada_w2_a", "hada_w2_b", "hada_t2", factors.columns),
    )
    for i, half in enumerate(halves):
        factors.expect(LOHA[i][0], half.shape[0], factors.rows, "outputs of")
        factors.expect(LOHA[i][1], half.shape[1], factors.columns, "inputs of")
    first, second = halves
    scale = np.float32(factors.scale(len(first.down)))
    return Hadamard(LowRank(first.down, first.up * scale), second)


LOHA: tuple[tuple[Role, Role], ...] = (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"))


def _lokr(factors: Factors) -> Kronecker:
    left: Full | LowRank
    right: Full | LowRank
    if factors.has("lokr_w1"):
        left = Full(factors.matrix("lokr_w1"))
    else:
        left = _product(factors, "lokr_w1_a", "lokr_w1_b", None, 0)
    if factors.has("lokr_w2"):
        right = Full(factors.matrix("lokr_w2"))
    else:
        columns = factors.columns // left.shape[1]
        right = _product(factors, "lokr_w2_a", "lokr_w2_b", "lokr_t2", columns)
    found = (left.shape[0] * right.shape[0], left.shape[1] * right.shape[1])
    if found != (factors.rows, factors.columns):
        raise LoraError(
            short(factors.module.name),
            got=f"sides of a Kronecker product of {found[0]} by {found[1]}",
            expected=f"{factors.rows} by {factors.columns}",
        )
    # with both sides whole there is nothing that alpha would scale
    ranks = [len(each.down) for each in (right, left) if isinstance(each, LowRank)]
    scale = factors.scale(ranks[0]) if ranks else 1.0
    return Kronecker(left.times(1), right.times(scale))


def _product(
    factors: Factors, outer: Role, inner: Role, core: Role | None, columns: int
) -> LowRank:
    """(out, r) @ (r, in), or with a Tucker core (r, out) transposed @ (core · (r, in))."""
    up, down = factors.matrix(outer), factors.matrix(inner)
    if core is not None and factors.has(core):
        up, down = up.T, _contracted(factors, core, down, inner, columns)
    factors.expect(outer, up.shape[1], len(down), "a rank of")
    return LowRank(down, up)


def _full(factors: Factors) -> Full:
    values = factors.vector("diff") if factors.columns == 1 else factors.matrix("diff")
    factors.expect("diff", len(values), factors.rows, "outputs of")
    factors.expect("diff", values.shape[1], factors.columns, "inputs of")
    return Full(values)


KINDS = (
    Kind(("down", "up", "mid"), _lora),
    Kind(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"), _loha),
    Kind(
        ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        _lokr,
    ),
    Kind(("diff",), _full),
)
