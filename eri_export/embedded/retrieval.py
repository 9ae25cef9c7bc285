"""Checks generated images against their prompts by their nearest training image."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
    """The nearest training image of every generated one, and its distance."""

    nearest: npt.NDArray[np.int64]  # (N,) indices into the training images
    distance: npt.NDArray[np.float64]  # (N,) root-mean-square distance

    def accuracy(self, expected: npt.ArrayLike) -> float:
        """Returns the share of images whose nearest training image is the expected one.

        Raises ValueError if `expected` does not have one index per image.
        """
        indices = np.asarray(expected)
        if indices.shape != self.nearest.shape:
            raise ValueError(
                f"expected: shape {indices.shape}, but there are {self.nearest.size} images"
            )
        return float(np.mean(self.nearest == indices))


def nearest_images(generated: Images, training: Images, *, block: int = 4) -> Retrieval:
    """Finds nearest images (N, H, W, 3) by the RMS of pixels averaged over `block`² squares."""
    return nearest_vectors(
        shrink("generated", generated, block) / 255, shrink("training", training, block) / 255
    )


def nearest_vectors(
    generated: npt.NDArray[np.floating], training: npt.NDArray[np.floating]
) -> Retrieval:
    """Finds nearest latents or shrunk images by the RMS over all axes but the first."""
    if generated.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"generated {generated.shape} and training {training.shape} differ in shape"
        )
    queries = generated.reshape(len(generated), -1).astype(np.float64)
    keys = training.reshape(len(training), -1).astype(np.float64)
    # |q - k|^2 = |q|^2 - 2 q.k + |k|^2, (N, M)
    squares = (queries**2).sum(1)[:, None] - 2 * queries @ keys.T + (keys**2).sum(1)[None]
    nearest = squares.argmin(axis=1)
    best = np.take_along_axis(squares, nearest[:, None], axis=1)[:, 0]
    return Retrieval(nearest=nearest, distance=np.sqrt(np.maximum(best, 0) / queries.shape[1]))


def shrink(name: str, images: Images, block: int) -> npt.NDArray[np.float64]:
    """Averages `block` x `block` squares of images, in [0, 255].

    Raises ValueError, which calls the images `name`, if they are not uint8 (N, H, W, 3) or no
    multiple of `block` in size.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"{name}: got {images.dtype} {images.shape}, expected uint8 (N, H, W, 3)")
    count, height, width, channels = images.shape
    if height % block or width % block:
        raise ValueError(f"{name}: {height}x{width} is not a multiple of block {block}")
    squares = images.reshape(count, height // block, block, width // block, block, channels)
    means: npt.NDArray[np.float64] = squares.mean(axis=(2, 4))
    return means
