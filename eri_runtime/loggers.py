"""Where a training's pictures are shown: TensorBoard, Weights & Biases, or an object of one's own.

A logger is told by the method it has, so none of these libraries is needed but the one in use.
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
    """A saved picture: what it is called where it is shown, its file, and its prompt."""

    tag: str
    path: Path
    prompt: str


Show = Callable[[Any, Sequence[Sample], int], None]


def show(logger: Any, samples: Sequence[Sample], step: int) -> None:
    """Give the pictures of one step of training to a logger."""
    way_of(logger)(logger, samples, step)


def way_of(logger: Any) -> Show:
    """How a logger is given pictures; raises `UsageError` for an object that takes none.

    Also raises `BackendError` for one like a Weights & Biases run where wandb is not installed.
    """
    for method, way in WAYS.items():
        if callable(getattr(logger, method, None)):
            if way is _to_wandb:
                _wandb()
            return way
    raise UsageError("loggers", got=short(logger), expected=f"objects with {EXPECTED}")


def _to_own(logger: Any, samples: Sequence[Sample], step: int) -> None:
    for sample in samples:
        logger.log_image(sample.path, step)


def _to_tensorboard(logger: Any, samples: Sequence[Sample], step: int) -> None:
    """(C, H, W) bytes, which `SummaryWriter.add_image` takes unasked."""
    for sample in samples:
        logger.add_image(sample.tag, _planes(sample.path), step)


def _to_wandb(logger: Any, samples: Sequence[Sample], step: int) -> None:
    """All in one call: a run's steps may not go back."""
    image = _wandb().Image
    logger.log(
        {each.tag: image(str(each.path), caption=each.prompt) for each in samples}, step=step
    )


WAYS: dict[str, Show] = {
    "log_image": _to_own,
    "add_image": _to_tensorboard,
    "log": _to_wandb,
}


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        fix = "pip install wandb, or pass an object with log_image(path, step)"
        raise BackendError("wandb", got=error, expected="it, for `log`", fix=fix) from error
    return wandb


def _planes(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
