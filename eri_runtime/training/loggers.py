"""Sends images to a logger: TensorBoard, Weights & Biases, or an object of your own.

The kind of a logger is recognised by its methods, so only the library in use must be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import BackendError, UsageError, short

EXPECTED = (
    "log_image(path, step), add_image(tag, img, global_step) of a SummaryWriter, or log({...}, "
    "step=) of a Weights & Biases run"
)


@dataclass(frozen=True)
class Sample:
    """A saved image: its tag in the logger, its file and its prompt."""

    tag: str
    path: Path
    prompt: str


Adapter = Callable[[Any, Sequence[Sample], int], None]


def log_pictures(logger: Any, samples: Sequence[Sample], step: int) -> None:
    """Sends the images of one training step to a logger."""
    logger_adapter(logger)(logger, samples, step)


def logger_adapter(logger: Any) -> Adapter:
    """Returns the function that sends images to a logger of this kind.

    Raises `UsageError` if the object has none of the known methods, and `BackendError` if it looks
    like a Weights & Biases run but wandb is not installed.
    """
    for method, adapter in ADAPTERS.items():
        if callable(getattr(logger, method, None)):
            if adapter is _to_wandb:
                _wandb()
            return adapter
    raise UsageError("loggers", got=short(logger), expected=f"objects with {EXPECTED}")


def _to_log_image(logger: Any, samples: Sequence[Sample], step: int) -> None:
    """Passes the path of each image."""
    for sample in samples:
        logger.log_image(sample.path, step)


def _to_tensorboard(logger: Any, samples: Sequence[Sample], step: int) -> None:
    """Passes each image as (C, H, W) uint8, the default format of `SummaryWriter.add_image`."""
    for sample in samples:
        logger.add_image(sample.tag, _planes(sample.path), step)


def _to_wandb(logger: Any, samples: Sequence[Sample], step: int) -> None:
    """Passes all images in one call, because a run's steps must increase."""
    image = _wandb().Image
    logger.log(
        {sample.tag: image(str(sample.path), caption=sample.prompt) for sample in samples},
        step=step,
    )


ADAPTERS: dict[str, Adapter] = {
    "log_image": _to_log_image,
    "add_image": _to_tensorboard,
    "log": _to_wandb,
}


def _wandb() -> Any:
    """Imports wandb; raises `BackendError` if it is not installed."""
    try:
        import wandb
    except ImportError as error:
        fix = "pip install wandb, or pass an object with log_image(path, step)"
        raise BackendError("wandb", got=error, expected="it, for `log`", fix=fix) from error
    return wandb


def _planes(path: Path) -> NDArray[np.uint8]:
    """Reads an image as (C, H, W) uint8."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
