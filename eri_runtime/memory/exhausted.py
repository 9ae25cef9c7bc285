"""Which errors mean that memory has ended: every engine says it in words of its own."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from eri_runtime.errors import OutOfMemoryError

# ONNX Runtime's arena, its CUDA provider, C++, threads that get no stack, TensorRT, OpenVINO
WORDS = re.compile(
    r"failed to allocate memory|bad_alloc|bad allocation|out of memory|cannot allocate memory|"
    r"pthread_create failed, error code: (11|12)\b|alloc_failed|outofmemory",
    re.IGNORECASE,
)
ASKED = re.compile(r"requested buffer of size (\d+)")  # ONNX Runtime's arena


def is_exhausted(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that memory has ended."""
    return any(_says_so(each) for each in _chain(error))


def asked(error: BaseException) -> int | None:
    """The bytes of the allocation that failed, where the engine says how many they were."""
    for each in _chain(error):
        if isinstance(each, OutOfMemoryError):
            return each.needed
        if found := ASKED.search(str(each)):
            return int(found[1])
    return None


def ended(component: str, error: BaseException) -> OutOfMemoryError:
    """The error of an engine that had no memory for a component, as one of ours that names it."""
    if isinstance(error, OutOfMemoryError):
        return error
    needed = asked(error)
    expected = "memory for it" if needed is None else f"{needed / 1e6:,.0f} MB more at once"
    made = OutOfMemoryError(component, got=f"{type(error).__name__}", expected=expected)
    made.component, made.needed = component, needed
    return made


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return WORDS.search(str(error)) is not None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__
