"""Runs a request of the pipeline's model: previews, then the images."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any

from eri_runtime.errors import (
    CancelledError,
    EriError,
    LoraError,
    OutOfMemoryError,
    UsageError,
    cut,
)
from eri_runtime.triton.tensors import Array, Read, answer, call_words, previews_of

if TYPE_CHECKING:
    from eri_runtime.pipeline import Pipeline

# names of Triton's error codes, by the errors that they stand for; INTERNAL for all others
CODES: Mapping[str, tuple[type[EriError], ...]] = {
    "INVALID_ARG": (UsageError, LoraError),
    "CANCELLED": (CancelledError,),
    "UNAVAILABLE": (OutOfMemoryError,),
}


def draw(pipe: Pipeline, read: Read, cancelled: Callable[[], bool]) -> Generator[dict[str, Array]]:
    """Yields the outputs of a request: those of its previews, then those of its images.

    Args:
        pipe: The pipeline.
        read: Returns an input by name, or None if the request left it out.
        cancelled: Whether the client has given the request up; asked before every step.

    Raises:
        UsageError: If an input is invalid.
        CancelledError: If the client has given the request up.
        NonFiniteError: If the latents or images contain NaN or Inf.
        OutOfMemoryError: If the request does not fit in memory.
    """
    words: dict[str, Any] = call_words(read)
    previews = previews_of(read)
    request = pipe.request(**words)
    _check_wanted(cancelled)
    pipe.prepare(request)
    for step in pipe.denoise(request):
        _check_wanted(cancelled)
        made, total = step.index + 1, step.total
        if is_due(made, total, previews):
            texts = [""] * request.batch
            images = pipe.preview(request, step)
            yield answer(images, texts, request.seeds, made, total)
    result = pipe.finish(request, step.x)
    yield answer(result.images, result.parameters, result.seeds, total, total)


def is_due(step: int, total: int, previews: int) -> bool:
    """Returns whether a preview follows a step, 1 to `total`, if they are evenly spaced.

    None follows the last step, which gives the image itself.
    """
    parts = previews + 1
    return step < total and step * parts // total > (step - 1) * parts // total


def error_code(error: Exception) -> str:
    """Returns the name of Triton's code for an error."""
    return next((code for code, kinds in CODES.items() if isinstance(error, kinds)), "INTERNAL")


def error_text(error: Exception) -> str:
    """Returns the message of an error for the client; of one that is not ours, its kind too."""
    return str(error) if isinstance(error, EriError) else cut(f"{type(error).__name__}: {error}")


def _check_wanted(cancelled: Callable[[], bool]) -> None:
    """Raises `CancelledError` if the client has given the request up."""
    if cancelled():
        raise CancelledError("request", got="a cancellation", expected="a client that waits")
