"""Imports TensorRT or TensorRT for RTX: the same API in two modules, imported once per process."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args

from eri_runtime.bundle import EngineName
from eri_runtime.errors import BackendError
from eri_runtime.install_hint import install_hint

INSTALL: Mapping[EngineName, str] = {
    "tensorrt": "pip install tensorrt",
    "tensorrt-rtx": install_hint("rtx"),
}
SHOWN = 300  # characters of a library's message that an error repeats


@dataclass(frozen=True)
class Library:
    """An imported library.

    Attributes:
        name: `tensorrt` or `tensorrt-rtx`.
        module: The Python module.
        logger: The logger that every object of the library is created with.
        errors: Messages that the library logged as errors, oldest first.
    """

    name: EngineName
    module: Any
    logger: Any
    errors: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        """The library's version, such as 1.7.1.116."""
        return str(self.module.__version__)

    def last_error(self) -> str:
        """Returns the last logged error in one short line, or `no reason`."""
        message = " ".join(self.errors[-1].split()) if self.errors else "no reason"
        return message[:SHOWN]


def installed() -> tuple[EngineName, ...]:
    """Returns the libraries that can be imported, TensorRT first."""
    return tuple(name for name in get_args(EngineName) if importlib.util.find_spec(_module(name)))


@cache  # the library uses the first logger of a process for everything
def load_library(name: EngineName) -> Library:
    """Imports a library.

    Args:
        name: `tensorrt` or `tensorrt-rtx`.

    Returns:
        The library with its logger. The same object for every call with the same name.

    Raises:
        BackendError: If the library cannot be imported.
    """
    try:
        module = importlib.import_module(_module(name))
    except Exception as error:  # a half-installed library raises whatever its loader raises
        got = f"{type(error).__name__}: {error}"
        raise BackendError(
            f"engine {name}", got=got, expected="its library", fix=INSTALL[name]
        ) from error
    errors: list[str] = []
    return Library(name, module, _create_logger(module, errors), errors)


def _module(name: EngineName) -> str:
    return name.replace("-", "_")


def _create_logger(module: Any, errors: list[str]) -> Any:
    """Creates a logger that appends error messages to `errors` and drops all others."""
    base = module.ILogger

    def log(_: object, severity: Any, message: str) -> None:
        if severity in (base.ERROR, base.INTERNAL_ERROR):
            errors.append(message)

    return type("Logger", (base,), {"log": log})()
