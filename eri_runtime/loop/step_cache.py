"""First-block caching: skips most of the denoiser in steps that resemble the last computed one.

    r  = first block(x, t) − its input
    d  = mean|r − r_c| / mean|r_c|,  c the last step that ran every block
    d < threshold: the other blocks add what they added in step c (or, in a UNet, the last up block
    reads the features of step c); else they run, and c is this step

It is lossy. After First Block Cache of ParaAttention (https://github.com/chengzeyi/ParaAttention)
and, for UNets, DeepCache (arXiv:2312.00858). d is computed for each image over all its conditions,
and one image with d at or above the threshold makes the step compute for all. No step but the first
is always computed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from eri_runtime.bundle import ShapeRange
from eri_runtime.executors import FirstBlock, PartedDenoiser
from eri_runtime.latents import row_chunks
from eri_runtime.loop.guidance_plan import Inputs
from eri_runtime.loop.numpy_loop import Array


class FirstBlockCache:
    """What one trajectory remembers of its last computed step.

    Attributes:
        computed: Whether the last step ran every block.
    """

    def __init__(
        self, denoiser: Callable[[], PartedDenoiser], threshold: float, images: int
    ) -> None:
        """Remembers nothing yet.

        Args:
            denoiser: Returns the denoiser in parts, for every step.
            threshold: Distance d below which a step skips blocks.
            images: Number of images B.
        """
        self._denoiser, self._threshold, self._images = denoiser, threshold, images
        self._key: Hashable = None
        self._residual: Array | None = None
        self._added: list[Array] = []
        self.computed = True

    def predict(self, rows: ShapeRange, shared: Inputs, inputs: Inputs, key: Hashable) -> Array:
        """Returns the denoiser's predictions for a step, (K·B, …), computed or from the cache.

        Args:
            rows: The range of the denoiser's batch.
            shared: Inputs without a batch axis.
            inputs: Inputs (K·B, …), one condition after the other.
            key: What a remembered step must have in common with this one, such as the conditions.
        """
        calls, counts = zip(*row_chunks(rows, inputs, shared), strict=True)

        def choose(blocks: Sequence[FirstBlock]) -> list[Array]:
            residual = np.concatenate(
                [block.residual[:count] for block, count in zip(blocks, counts, strict=True)]
            )
            self.computed = not (key == self._key and self._resembles(residual))
            if self.computed:
                self._key, self._residual = key, residual
                return self._run(blocks)
            added = zip(self._added, blocks, strict=True)
            return [rest if block.hidden is None else block.hidden + rest for rest, block in added]

        outputs = self._denoiser().run(calls, choose)
        parts = (output[:count] for output, count in zip(outputs, counts, strict=True))
        return np.concatenate(list(parts))

    def _run(self, blocks: Sequence[FirstBlock]) -> list[Array]:
        """Runs the other blocks, and remembers what they add."""
        results = [block.rest() for block in blocks]
        self._added = [
            rest if block.hidden is None else rest - block.hidden
            for rest, block in zip(results, blocks, strict=True)
        ]
        return results

    def _resembles(self, residual: Array) -> bool:
        """Returns whether d of every image is below the threshold. NaN is not."""
        before = self._residual
        if before is None or before.shape != residual.shape:
            return False
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = _means(residual - before, self._images) / _means(before, self._images)
        return bool((distance < self._threshold).all())


def _means(values: Array, images: int) -> Array:
    """Returns the mean absolute value for each image, (B,), of values (K·B, …)."""
    means: Array = np.abs(values).reshape(len(values) // images, images, -1).mean(axis=(0, 2))
    return means
