"""Updates of a weight in the factored forms that trainers store.

LoRA (Hu et al. 2021), LoHa (FedPara, Hyeon-Woo et al. 2021) and LoKr (Yeh et al. 2023, LyCORIS).
All updates are matrices here: a convolution's (out, in, h, w) is flattened to (out, in·h·w).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eri_runtime.weights.published_keys.parts import Form, Part, Rows

Matrix = NDArray[np.float32]


class Delta(Protocol):
    """An update ΔW of a weight, as a matrix (rows, columns)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the update."""
        ...

    def times(self, scale: float) -> Matrix:
        """Returns scale · ΔW in a new array."""
        ...

    def taken(self, part: Part) -> Delta:
        """Returns the update of a part of the weight; the rows must be divisible."""
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """LoRA: up @ down, with up (rows, r) and down (r, columns)."""

    down: Matrix
    up: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the product."""
        return self.up.shape[0], self.down.shape[1]

    def times(self, scale: float) -> Matrix:
        """Returns scale · up @ down."""
        up: Matrix = self.up * np.float32(scale)
        product: Matrix = np.matmul(up, self.down)
        return product

    def taken(self, part: Part) -> LowRank:
        """Returns the product of `down` and the part's rows of `up`."""
        return LowRank(self.down, rows_of(part, self.up))


@dataclass(frozen=True, eq=False)
class Hadamard:
    """LoHa: the element-wise product of two low-rank products."""

    first: LowRank
    second: LowRank

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of both products."""
        return self.first.shape

    def times(self, scale: float) -> Matrix:
        """Returns scale · first ⊙ second."""
        product = self.first.times(scale)
        product *= self.second.times(1)
        return product

    def taken(self, part: Part) -> Hadamard:
        """Returns the element-wise product of the part's rows."""
        return Hadamard(self.first.taken(part), self.second.taken(part))


@dataclass(frozen=True, eq=False)
class Kronecker:
    """LoKr: a part of the Kronecker product left ⊗ right."""

    left: Matrix
    right: Matrix
    part: Part = Form.WHOLE

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the part."""
        rows = self.left.shape[0] * self.right.shape[0]
        if isinstance(self.part, Rows):
            rows = rows // self.part.of * (self.part.end - self.part.begin)
        return rows, self.left.shape[1] * self.right.shape[1]

    def times(self, scale: float) -> Matrix:
        """Returns the part of scale · left ⊗ right; computes the whole product each time."""
        return rows_of(self.part, np.kron(self.left, self.right * np.float32(scale)))

    def taken(self, part: Part) -> Kronecker:
        """Returns the same product with another part: a part is not itself a product."""
        return Kronecker(self.left, self.right, part)


@dataclass(frozen=True, eq=False)
class Full:
    """An update that is stored in full."""

    values: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the update."""
        return self.values.shape[0], self.values.shape[1]

    def times(self, scale: float) -> Matrix:
        """Returns scale · values."""
        return self.values * np.float32(scale)

    def taken(self, part: Part) -> Full:
        """Returns the part's rows."""
        return Full(rows_of(part, self.values))


def whole_rows(part: Part, rows: int) -> int:
    """Returns the number of rows of the whole tensor, given the number of rows of its part."""
    return rows * part.of // (part.end - part.begin) if isinstance(part, Rows) else rows


def rows_of(part: Part, matrix: NDArray[Any]) -> NDArray[Any]:
    """Returns the rows of an update that belong to a part of its weight, in the part's form."""
    match part:
        case Rows():
            height = len(matrix) // part.of
            return matrix[part.begin * height : part.end * height]
        case Form.SWAPPED:
            return np.roll(matrix, len(matrix) // 2, axis=0)
        case Form.TRANSPOSED:
            return matrix.T
        case Form.WHOLE | Form.MATRIX:
            return matrix
