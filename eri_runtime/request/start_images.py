"""What a call starts from: pictures, torch tensors of pictures, or latents."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import LatentSpec
from eri_runtime.checks import float32, to_numpy
from eri_runtime.errors import SizeError, UsageError
from eri_runtime.images import size_of
from eri_runtime.latents import latent_shape, unpatchify

Array = NDArray[np.float32]
CHANNELS = (1, 3)  # of a mask and of a picture


def list_images(image: Any) -> list[Any]:
    """Returns one image, a list of images, or an array with a batch axis, as a list."""
    if isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4):
        return list(image)
    return [image]


def image_size(image: Any, spec: LatentSpec) -> tuple[int, int] | None:
    """Returns the height and width in pixels that images ask for.

    Those of latents, or of the first picture, rounded down to what the denoiser takes; None for
    packed latents, which do not tell.
    """
    if is_latents(image, spec):
        if np.ndim(image) == 3:
            return None
        return image.shape[2] * spec.factor, image.shape[3] * spec.factor
    images = list_images(image)
    if not images:
        raise UsageError("image", got="none", expected="an image, or a list of them")
    multiple = spec.factor * spec.patch
    width, height = size_of("image", images[0])
    return height // multiple * multiple, width // multiple * multiple


def from_tensors(name: str, image: Any) -> Any:
    """Returns torch tensors among the images as arrays (H, W, 3), masks as (H, W).

    Tensors are (C, H, W) or (B, C, H, W) in [0, 1] or, if one has negative values, in [-1, 1], as
    diffusers takes them. Anything else, latents too, stays as it is.
    """
    if isinstance(image, list | tuple):
        return [_from_tensor(name, each) for each in image]
    return _from_tensor(name, image)


def _from_tensor(name: str, image: Any) -> Any:
    """Returns a torch tensor as arrays, as `from_tensors` does; anything else as it is."""
    if not hasattr(image, "detach"):
        return image
    array = to_numpy(name, image)
    if array.ndim < 3 or array.shape[-3] not in CHANNELS:
        return array
    if array.dtype.kind == "f" and (array < 0).any():
        array = array / 2 + 0.5
    array = np.moveaxis(array, -3, -1)
    if array.shape[-1] == CHANNELS[1]:
        return array
    return array[..., 0] if array.ndim == 3 else list(array[..., 0])


def is_latents(image: Any, spec: LatentSpec) -> bool:
    """Returns whether an image is an array of latents: (B, C, h, w), or packed (B, tokens, 4·C)."""
    if not isinstance(image, np.ndarray):
        return False
    if image.ndim == 4:
        return image.shape[1] == spec.channels and image.shape[3] not in CHANNELS
    return image.ndim == 3 and image.shape[2] == spec.channels * spec.patch**2


def latents_of(image: NDArray[Any], spec: LatentSpec, size: tuple[int, int], count: int) -> Array:
    """Returns latents as (count, C, h, w) float32, each repeated as often as needed.

    Raises `SizeError` for those of another size or number, `NonFiniteError` for NaN or Inf.
    """
    shape = latent_shape(spec, *size)
    array = float32("image", image)
    tokens = shape[1] * shape[2] // spec.patch**2
    if array.ndim == 3 and array.shape[1] == tokens:
        array = unpatchify(array, *shape[1:], spec.patch)
    if array.shape[1:] != shape or not len(array) or count % len(array):
        raise SizeError("image", got=image.shape, expected=(count, *shape))
    return np.repeat(array, count // len(array), axis=0)
