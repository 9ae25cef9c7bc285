"""Builds the update of one module from its tensors, and checks shapes before multiplying.

The scale alpha / rank is folded into the last factor. Tucker cores (LoCon's `lora_mid`, LyCORIS's
`t1` and `t2`) are contracted with the inner factor, which leaves a plain product.
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
from eri_runtime.weights.lora.deltas import Delta, Full, Hadamard, Kronecker, LowRank, Matrix
from eri_runtime.weights.lora.keys import Module, Role
from eri_runtime.weights.lora.peft_config import Alphas

FP8 = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))
FLOATS = (
    *(np.dtype(each) for each in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)),
    *FP8,
)
INTEGERS = tuple(np.dtype(each) for each in (np.int32, np.int64))  # for alpha


@dataclass(frozen=True)
class ModuleFactors:
    """The tensors of one module, and the shape that its update must have.

    Attributes:
        module: The module and its keys.
        tensors: The tensors of the whole file, by key.
        alphas: Scales for modules without an alpha of their own.
        rows: Rows of the update.
        columns: Columns of the update.
    """

    module: Module
    tensors: Mapping[str, Any]
    alphas: Alphas
    rows: int
    columns: int

    def has(self, *roles: Role) -> bool:
        """Returns whether the module has a tensor for each of these roles."""
        return all(role in self.module.keys for role in roles)

    def read(self, role: Role) -> NDArray[np.float32]:
        """Returns a tensor as a new float32 array, so that the file may be closed.

        Raises `LoraError` if it is missing or has a wrong type, `NonFiniteError` for NaN or Inf.
        """
        key = self.module.keys.get(role)
        if key is None:
            present = ", ".join(short(each) for each in self.module.keys.values())
            raise LoraError(self.module.name, got=f"only {present}", expected=f"its {role} too")
        return finite_float32(
            key, self.tensors[key], FLOATS if role != "alpha" else (*FLOATS, *INTEGERS)
        )

    def matrix(self, role: Role) -> Matrix:
        """Returns a factor as a matrix, with all axes but the first flattened."""
        values = self.read(role)
        if values.ndim < 2 or not values.size:
            raise self.shape_error(role, values.shape, "a matrix or a convolution, not empty")
        return values.reshape(len(values), -1)

    def vector(self, role: Role) -> Matrix:
        """Returns the values of a bias or a norm as a column (rows, 1)."""
        values = self.read(role)
        self.check_side(role, values.size, self.rows, "a size of")
        return values.reshape(-1, 1)

    def scale(self, rank: int) -> float:
        """Returns alpha / rank; the file's alpha, else peft's, else 1."""
        if not self.has("alpha"):
            return self.alphas.scale(self.module.name, rank)
        alpha = self.read("alpha")
        if alpha.size != 1:
            raise self.shape_error("alpha", alpha.shape, "one number")
        return float(alpha.reshape(())) / rank

    def shape_error(self, role: Role, shape: Sequence[int], expected: str) -> LoraError:
        """Returns the error for a tensor whose shape does not fit."""
        key = self.module.keys[role]
        return LoraError(short(key), got=f"shape {short(list(shape))}", expected=expected)

    def check_side(self, role: Role, size: int, expected: int, what: str) -> None:
        """Raises `LoraError` unless a side of a factor has the expected size."""
        if size != expected:
            shape = np.shape(self.tensors[self.module.keys[role]])
            raise self.shape_error(role, shape, f"{what} {expected}, not {size}")


class UpdateKind(NamedTuple):
    """A kind of update; a module is of this kind if it has any of the roles."""

    any_of: tuple[Role, ...]
    build: Callable[[ModuleFactors], Delta]


def finite_float32(key: str, value: Any, dtypes: Sequence[np.dtype[Any]]) -> NDArray[np.float32]:
    """Converts a tensor to a new float32 array.

    Raises `LoraError` unless its type is one of `dtypes`, and `NonFiniteError` for NaN or Inf.
    """
    if not isinstance(value, np.ndarray) or value.dtype not in dtypes:
        got = f"{value.dtype} numbers" if isinstance(value, np.ndarray) else type(value).__name__
        expected = f"an array of {', '.join(each.name for each in dtypes)}"
        raise LoraError(short(key), got=got, expected=expected)
    with np.errstate(over="ignore"):
        values = value.astype(np.float32)
    if values.size and not np.isfinite([values.min(), values.max()]).all():
        raise NonFiniteError(short(key), got="NaN or Inf", expected="finite numbers")
    return values


WITHOUT_FACTORS: tuple[Role, ...] = ("value", "up_bias", "diff_b")  # changes without a product


def build_update(factors: ModuleFactors) -> Delta | None:
    """Returns the update of a module's weight, or None if the module only changes other things.

    Raises `LoraError` for factors of two kinds, a missing factor, or shapes that do not fit.
    """
    kinds = [kind for kind in KINDS if any(factors.has(role) for role in kind.any_of)]
    if len(kinds) > 1:
        present = ", ".join(short(each) for each in factors.module.keys.values())
        raise LoraError(factors.module.name, got=present, expected="factors of one kind of update")
    if not kinds and not any(factors.has(role) for role in WITHOUT_FACTORS):
        factors.read("down")  # raises, and lists the keys that are there
    return kinds[0].build(factors) if kinds else None


def _lora(factors: ModuleFactors) -> LowRank:
    """Builds up @ down; a convolution may have a Tucker core in between."""
    up, down = factors.matrix("up"), factors.matrix("down")
    rank = len(down)
    if factors.has("mid"):
        down = _contract_core(factors, "mid", down, "down", factors.columns)
    factors.check_side("up", up.shape[1], len(down), "a rank of")
    factors.check_side("up", len(up), factors.rows, "outputs of")
    factors.check_side("down", down.shape[1], factors.columns, "inputs of")
    return LowRank(down, up * np.float32(factors.scale(rank)))


def _contract_core(
    factors: ModuleFactors, core: Role, inner: Matrix, role: Role, columns: int
) -> Matrix:
    """Contracts the second axis of a Tucker core (r, s, h, w) with (s, in): (r, in·h·w)."""
    values = factors.read(core)
    if values.ndim < 3 or not values.size:
        raise factors.shape_error(core, values.shape, "a core of a convolution")
    factors.check_side(role, len(inner), values.shape[1], "a rank of")
    area = math.prod(values.shape[2:])
    factors.check_side(role, inner.shape[1] * area, columns, "inputs of")
    product: Matrix = np.einsum("rsk,si->rik", values.reshape(*values.shape[:2], area), inner)
    return product.reshape(len(values), -1)


def _loha(factors: ModuleFactors) -> Hadamard:
    """Builds LoHa's (w1_a @ w1_b) ⊙ (w2_a @ w2_b)."""
    halves = (
        _product(factors, "hada_w1_a", "hada_w1_b", "hada_t1", factors.columns),
        _product(factors, "hada_w2_a", "hada_w2_b", "hada_t2", factors.columns),
    )
    for i, half in enumerate(halves):
        factors.check_side(LOHA[i][0], half.shape[0], factors.rows, "outputs of")
        factors.check_side(LOHA[i][1], half.shape[1], factors.columns, "inputs of")
    first, second = halves
    scale = np.float32(factors.scale(len(first.down)))
    return Hadamard(LowRank(first.down, first.up * scale), second)


LOHA: tuple[tuple[Role, Role], ...] = (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"))


def _lokr(factors: ModuleFactors) -> Kronecker:
    """Builds LoKr's w1 ⊗ w2, where each may itself be a low-rank product."""
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
    shape = (left.shape[0] * right.shape[0], left.shape[1] * right.shape[1])
    if shape != (factors.rows, factors.columns):
        raise LoraError(
            short(factors.module.name),
            got=f"sides of a Kronecker product of {shape[0]} by {shape[1]}",
            expected=f"{factors.rows} by {factors.columns}",
        )
    # LyCORIS applies alpha only if a side is a low-rank product
    ranks = [len(each.down) for each in (right, left) if isinstance(each, LowRank)]
    scale = factors.scale(ranks[0]) if ranks else 1.0
    return Kronecker(left.times(1), right.times(scale))


def _product(
    factors: ModuleFactors, outer: Role, inner: Role, core: Role | None, columns: int
) -> LowRank:
    """Builds (out, r) @ (r, in), or with a Tucker core (r, out)ᵀ @ (core · (r, in))."""
    up, down = factors.matrix(outer), factors.matrix(inner)
    if core is not None and factors.has(core):
        up, down = up.T, _contract_core(factors, core, down, inner, columns)
    factors.check_side(outer, up.shape[1], len(down), "a rank of")
    return LowRank(down, up)


def _full(factors: ModuleFactors) -> Full:
    """Builds an update that is stored in full."""
    values = factors.vector("diff") if factors.columns == 1 else factors.matrix("diff")
    factors.check_side("diff", len(values), factors.rows, "outputs of")
    factors.check_side("diff", values.shape[1], factors.columns, "inputs of")
    return Full(values)


KINDS = (
    UpdateKind(("down", "up", "mid"), _lora),
    UpdateKind(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"), _loha),
    UpdateKind(
        ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        _lokr,
    ),
    UpdateKind(("diff",), _full),
)
