"""TensorRT and TensorRT for RTX: the same names in two modules, imported once a process."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args

from eri_runtime.errors import BackendError
from eri_runtime.spec import EngineName

INSTALL: Mapping[EngineName, str] = {
    "tensorrt": "pip install tensorrt",
    "tensorrt-rtx": "pip install 'eri-diffusion[rtx]'",
}
SHOWN = 300  # characters of a library's message that ours repeats


@dataclass(frozen=True)
class Library:
    """An imported library; `errors` are what it has said of the work in progress."""

    name: EngineName
    module: Any
    logger: Any
    errors: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        """As 1.7.1.116."""
        return str(self.module.__version__)

    def said(self) -> str:
        """Its last error in one short line, or that there is none."""
        told = " ".join(self.errors[-1].split()) if self.errors else "no reason"
        return told[:SHOWN]


def installed() -> tuple[EngineName, ...]:
    """The libraries that can be imported, TensorRT first."""
    return tuple(each for each in get_args(EngineName) if importlib.util.find_spec(_module(each)))


@cache  # the library keeps the first logger of a process for all that it makes
def load_library(name: EngineName) -> Library:
    """The library of that name; raises `BackendError` where it cannot be imported."""
    try:
        module = importlib.import_module(_module(name))
    except Exception as error:  # a half-installed library raises what its loader raises
        got = f"{type(error).__name__}: {error}"
        raise BackendError(
            f"engine {name}", got=got, expected="its library", fix=INSTALL[name]
        ) from error
    errors: list[str] = []
    return Library(name, module, _logger(module, errors), errors)


def _module(name: EngineName) -> str:
    return name.replace("-", "_")


def _logger(module: Any, errors: list[str]) -> Any:
    class Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                errors.append(message)

    return Logger()
