"""Does a generated image show what its prompt asked for? Its nearest training image tells."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
    """The nearest training image of every generated one, and how far it is."""

    nearest: npt.NDArray[np.int64]  # (N,) indices into the training images
    distance: npt.NDArray[np.float64]  # (N,) root-mean-square distance

    def accuracy(self, expected: npt.ArrayLike) -> float:
        """The share of generated images whose nearest training image is the expected one."""
        indices = np.asarray(expected)
        if indices.shape != self.nearest.shape:
            raise ValueError(
                f"expected: shape {indices.shape}, but there are {self.nearest.size} images"
            )
        return float(np.mean(self.nearest == indices))


def nearest_images(generated: Images, training: Images, *, block: int = 4) -> Retrieval:
    """Nearest by root-mean-square of pixels in [0, 1], averaged over `block` x `block` squares."""
    return nearest_vectors(
        shrink("generated", generated, block) / 255, shrink("training", training, block) / 255
    )


def nearest_vectors(
    generated: npt.NDArray[np.floating], training: npt.NDArray[np.floating]
) -> Retrieval:
    """Nearest by root-mean-square over all axes but the first, for latents or shrunk images."""
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
    """Means of `block` x `block` squares in [0, 255]; `name` is what an error calls the images."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"{name}: got {images.dtype} {images.shape}, expected uint8 (N, H, W, 3)")
    count, height, width, channels = images.shape
    if height % block or width % block:
        raise ValueError(f"{name}: {height}x{width} is not a multiple of block {block}")
    squares = images.reshape(count, height // block, block, width // block, block, channels)
    return squares.mean(axis=(2, 4))
