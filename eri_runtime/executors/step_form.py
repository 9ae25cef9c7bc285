"""The two forms of step graphs, and what each takes: one row per call, or one row per image.

Bundles made before `ComponentSpec.step_per_image` have the first form: every image of a call is at
the same row of the same table, and has the same number of conditions. This is the only place that
tells the two forms apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import ComponentSpec
from eri_runtime.errors import UsageError
from eri_runtime.executors.base import Arrays
from eri_runtime.sampling import COLUMNS

Float32 = NDArray[np.float32]
Indices = NDArray[np.int64]

WIDTH = sum(COLUMNS.values())  # float32 numbers in a row of the sampler table
OWNER, INDEX = "owner", "index"  # inputs of the second form only
FIX = "run `eri upgrade BUNDLE`, or give such images calls of their own"


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Which image each row of the denoiser's batch belongs to, and which rows each image mixes.

    Attributes:
        owner: The image of each row, (rows,) int64.
        index: The rows that each image mixes, (K, B) int64. An image with fewer than K conditions
            repeats one of its own rows, with weight 0.
    """

    owner: Indices
    index: Indices


@lru_cache(maxsize=64)
def even_layout(conditions: int, images: int) -> Layout:
    """Returns the layout of K·B rows: all images of the first condition, then of the second, ….

    Equal calls return the same arrays, so that an engine uploads them once.

    Args:
        conditions: Number of conditions K of every image.
        images: Number of images B.
    """
    index = np.arange(conditions * images, dtype=np.int64).reshape(conditions, images)
    owner = index.reshape(-1) % images
    for array in (owner, index):
        array.flags.writeable = False
    return Layout(owner=owner, index=index)


@dataclass(frozen=True)
class StepForm:
    """Makes the inputs of a step graph of one form.

    Attributes:
        per_image: Whether the graph takes a row, and rows of the batch, for each image.
    """

    per_image: bool

    def row_shape(self, images: int) -> tuple[int, ...]:
        """Returns the shape of the input `row`."""
        return (images, WIDTH) if self.per_image else (WIDTH,)

    def magnitude_shape(self, images: int) -> tuple[int, ...]:
        """Returns the shape of the output `magnitude`."""
        return (images,) if self.per_image else ()

    def row(self, columns: Float32, images: int) -> Float32:
        """Returns the input `row`.

        Args:
            columns: One row for all images, (13,), or one for each, (B, 13).
            images: Number of images B.

        Raises:
            UsageError: If the shape is another, or rows differ and the graph takes one for all.
        """
        return np.broadcast_to(self._fitting(columns, images), self.row_shape(images))

    def write_row(self, columns: Float32, images: int, into: Float32) -> None:
        """Writes the input `row` into an array of its shape. Takes and raises what `row` does."""
        into[...] = self._fitting(columns, images)

    def _fitting(self, columns: Float32, images: int) -> Float32:
        """Returns what NumPy broadcasts to the input `row`. Raises the errors of `row`."""
        if columns.shape not in ((WIDTH,), (images, WIDTH)):
            expected = f"{WIDTH} numbers, or {WIDTH} for each of {images} images"
            raise UsageError("a row's columns", got=columns.shape, expected=expected)
        if self.per_image or columns.ndim == 1:
            return columns
        first: Float32 = columns[0]
        if (columns != first).any():
            expected = "one row for all images, as this step graph takes"
            raise UsageError("a row's columns", got="rows that differ", expected=expected, fix=FIX)
        return first

    def bound(self, mix: Float32, conditions: Arrays, layout: Layout | None) -> Arrays:
        """Returns the inputs that stay the same from row to row, by name.

        Args:
            mix: Weights of the conditions, (K, B).
            conditions: The denoiser's other inputs by name.
            layout: Which rows of the batch are whose. None: `even_layout`.

        Raises:
            UsageError: If the layout does not fit `mix`, gives an image another one's row, or is
                not even and the graph takes no other.
        """
        even = even_layout(*mix.shape)
        if layout is None:
            layout = even
        _check_layout(layout, mix)
        if self.per_image:
            return {"mix": mix, OWNER: layout.owner, INDEX: layout.index, **conditions}
        same = np.array_equal(layout.owner, even.owner)
        if not (same and np.array_equal(layout.index, even.index)):
            expected = "as many conditions for every image, as this step graph takes"
            raise UsageError("layout", got="another number", expected=expected, fix=FIX)
        return {"mix": mix, **conditions}


def form_of(spec: ComponentSpec) -> StepForm:
    """Returns the form of a denoiser's step graph."""
    return StepForm(spec.step_per_image)


def _check_layout(layout: Layout, mix: Float32) -> None:
    """Raises `UsageError` unless each image mixes rows of its own only, and all rows are owned."""
    owner, index = layout.owner, layout.index
    for name, values, shape in ((OWNER, owner, (owner.size,)), (INDEX, index, mix.shape)):
        if values.dtype != np.int64 or values.shape != shape:
            got = f"{values.dtype} of {values.shape}"
            raise UsageError(f"layout.{name}", got=got, expected=f"int64 of {shape}")
    images = mix.shape[1]
    for name, values, count in ((OWNER, owner, images), (INDEX, index, len(owner))):
        if ((values < 0) | (values >= count)).any():
            got = f"{values.min()} to {values.max()}"
            raise UsageError(f"layout.{name}", got=got, expected=f"0 to {count - 1}")
    if (owner[index] != np.arange(images)).any():
        expected = "rows that the image owns"
        raise UsageError("layout.index", got="a row of another image", expected=expected)
