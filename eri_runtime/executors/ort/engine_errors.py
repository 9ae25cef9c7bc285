"""Turns ONNX Runtime's exceptions, which share no base class, into `BackendError`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from eri_runtime.errors import BackendError, EriError

PACKAGES = ("onnxruntime", "onnxruntime-gpu")


class OrtErrors:
    """A context that raises every error of ONNX Runtime as `BackendError`.

    Memory errors of Python stay. It is no generator, as every step enters one.

    Args:
        offender: The graph or component, for the message.
        does: What the version of ONNX Runtime does with it, for the message.
    """

    __slots__ = ("_does", "_offender")

    def __init__(self, offender: object, does: str) -> None:
        self._offender, self._does = offender, does

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, EriError | MemoryError):
            got, expected = " ".join(str(error).split()), f"a graph that {_engine()} {self._does}"
            raise BackendError(self._offender, got=got, expected=expected) from error


def _engine() -> str:
    """Returns the library's name and version."""
    for package in PACKAGES:
        try:
            return f"ONNX Runtime {version(package)}"
        except PackageNotFoundError:
            continue
    return "ONNX Runtime"
