"""Recognizes out-of-memory errors, which every engine reports in its own words."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from eri_runtime.errors import OutOfMemoryError

# ONNX Runtime's arena, its CUDA provider, C++, threads without a stack, TensorRT, OpenVINO
MESSAGES = re.compile(
    r"failed to allocate memory|bad_alloc|bad allocation|out of memory|cannot allocate memory|"
    r"pthread_create failed, error code: (11|12)\b|alloc_failed|outofmemory",
    re.IGNORECASE,
)
REQUESTED = re.compile(r"requested buffer of size (\d+)")  # ONNX Runtime's arena


def is_exhausted(error: BaseException) -> bool:
    """Returns whether an error, or one that caused it, means that memory ran out."""
    return any(_means_exhausted(link) for link in _chain(error))


def requested_bytes(error: BaseException) -> int | None:
    """Returns the size of the allocation that failed, or None if the engine does not report it."""
    for link in _chain(error):
        if isinstance(link, OutOfMemoryError):
            return link.needed
        if match := REQUESTED.search(str(link)):
            return int(match[1])
    return None


def out_of_memory_error(component: str, error: BaseException) -> OutOfMemoryError:
    """Converts an engine's error to an `OutOfMemoryError` that names the component."""
    if isinstance(error, OutOfMemoryError):
        return error
    needed = requested_bytes(error)
    expected = "memory for it" if needed is None else f"{needed / 1e6:,.0f} MB more at once"
    converted = OutOfMemoryError(component, got=f"{type(error).__name__}", expected=expected)
    converted.component, converted.needed = component, needed
    return converted


def _means_exhausted(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return MESSAGES.search(str(error)) is not None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__
