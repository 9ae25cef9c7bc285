"""What trainers store instead of a weight's update: products, and how to multiply them out.

LoRA (Hu et al. 2021), LoHa (FedPara, Hyeon-Woo et al. 2021), LoKr (Yeh et al. 2023, LyCORIS). An
update is a matrix here: a convolution's (out, in, h, w) with its last three axes as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eri_runtime.published.parts import Form, Part, Rows

Matrix = NDArray[np.float32]


class Delta(Protocol):
    """An update of shape (rows, columns)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the update."""
        ...

    def times(self, scale: float) -> Matrix:
        """The update times `scale`, in new memory."""
        ...

    def taken(self, part: Part) -> Delta:
        """The rows of it that a weight takes; they divide."""
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """up @ down, of (rows, r) and (r, columns)."""

    down: Matrix
    up: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the product."""
        return self.up.shape[0], self.down.shape[1]

    def times(self, scale: float) -> Matrix:
        """The product times `scale`."""
        up: Matrix = self.up * np.float32(scale)
        return np.matmul(up, self.down)

    def taken(self, part: Part) -> LowRank:
        """The same rows of `up`."""
        return LowRank(self.down, rows_of(part, self.up))


@dataclass(frozen=True, eq=False)
class Hadamard:
    """The element-wise product of two low-rank products of one shape."""

    first: LowRank
    second: LowRank

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of both."""
        return self.first.shape

    def times(self, scale: float) -> Matrix:
        """The product times `scale`."""
        product = self.first.times(scale)
        product *= self.second.times(1)
        return product

    def taken(self, part: Part) -> Hadamard:
        """The same rows of both."""
        return Hadamard(self.first.taken(part), self.second.taken(part))


@dataclass(frozen=True, eq=False)
class Kronecker:
    """The Kronecker product of two matrices, and the part of it that is meant."""

    left: Matrix
    right: Matrix
    part: Part = Form.WHOLE

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of that part."""
        rows = self.left.shape[0] * self.right.shape[0]
        if isinstance(self.part, Rows):
            rows = rows // self.part.of * (self.part.end - self.part.begin)
        return rows, self.left.shape[1] * self.right.shape[1]

    def times(self, scale: float) -> Matrix:
        """That part of the product, times `scale`."""
        return rows_of(self.part, np.kron(self.left, self.right * np.float32(scale)))

    def taken(self, part: Part) -> Kronecker:
        """The product is made whole each time: its rows are no product."""
        return Kronecker(self.left, self.right, part)


@dataclass(frozen=True, eq=False)
class Full:
    """An update stored as it is."""

    values: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.values.shape[0], self.values.shape[1]

    def times(self, scale: float) -> Matrix:
        """The update times `scale`."""
        return self.values * np.float32(scale)

    def taken(self, part: Part) -> Full:
        """The same rows."""
        return Full(rows_of(part, self.values))


def whole_rows(part: Part, rows: int) -> int:
    """How many rows the whole has, whose part has `rows`."""
    return rows * part.of // (part.end - part.begin) if isinstance(part, Rows) else rows


def rows_of(part: Part, matrix: NDArray[Any]) -> NDArray[Any]:
    """The rows of an update that belong to a part of its weight."""
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
