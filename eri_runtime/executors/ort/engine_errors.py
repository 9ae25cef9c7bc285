"""Turns ONNX Runtime's exceptions, which share no base class, into `BackendError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from eri_runtime.errors import BackendError, EriError

PACKAGES = ("onnxruntime", "onnxruntime-gpu")


@contextmanager
def ort_errors(offender: object, does: str) -> Iterator[None]:
    """Raises every error of ONNX Runtime as `BackendError`; memory errors of Python stay.

    Args:
        offender: The graph or component, for the message.
        does: What the version of ONNX Runtime does with it, for the message.
    """
    try:
        yield
    except (EriError, MemoryError):
        raise
    except Exception as error:
        got, expected = " ".join(str(error).split()), f"a graph that {_engine()} {does}"
        raise BackendError(offender, got=got, expected=expected) from error


def _engine() -> str:
    """Returns the library's name and version."""
    for package in PACKAGES:
        try:
            return f"ONNX Runtime {version(package)}"
        except PackageNotFoundError:
            continue
    return "ONNX Runtime"
