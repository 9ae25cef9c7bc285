"""Validation images during training.

`validation` generates them, `image_files` saves tensors as PNG files, and `loggers` sends images to
TensorBoard or Weights & Biases. Start with `validation`.
"""

from eri_runtime.training.image_files import save_image, save_tensor_as_image, slug
from eri_runtime.training.validation import (
    NEGATIVE_EMBEDS,
    SHARED_KEYWORDS,
    generate_validation_samples,
)

__all__ = [
    "NEGATIVE_EMBEDS",
    "SHARED_KEYWORDS",
    "generate_validation_samples",
    "save_image",
    "save_tensor_as_image",
    "slug",
]
