"""The two engines that build plans: same names, different modules."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args

from eri_runtime.errors import BackendError, UnknownNameError
from eri_runtime.spec import EngineName

TAGS: Mapping[EngineName, str] = {"tensorrt": "trt", "tensorrt-rtx": "rtx"}
INSTALL: Mapping[EngineName, str] = {
    "tensorrt": "pip install tensorrt",
    "tensorrt-rtx": "pip install 'eri-diffusion[rtx]'",
}


@dataclass(frozen=True)
class Engine:
    """An imported engine; `errors` are what its builder has said of the build in progress."""

    name: EngineName
    module: Any
    logger: Any
    errors: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        """As 1.7.1.116."""
        return str(self.module.__version__)

    @property
    def tag(self) -> str:
        """What names a plan of this version, as rtx1.7.1."""
        return TAGS[self.name] + ".".join(self.version.split(".")[:3])

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities it can build for without their GPU; none for TensorRT."""
        known = getattr(self.module, "ComputeCapability", None)
        names = [] if known is None else [name for name in known.__members__ if name[:2] == "SM"]
        return tuple(f"{name[2:-1]}.{name[-1]}" for name in names)


def load_engine(name: str) -> Engine:
    """The engine of that name; `UnknownNameError` for no such, `BackendError` if not installed."""
    for known in get_args(EngineName):
        if name == known:
            return _loaded(known)
    expected = " or ".join(get_args(EngineName))
    raise UnknownNameError("engine", got=repr(name), expected=expected)


@cache  # the library keeps the first logger of a process for all its builders
def _loaded(name: EngineName) -> Engine:
    try:
        module = importlib.import_module(name.replace("-", "_"))
    except Exception as error:  # a half-installed library raises what its loader raises
        got = f"{type(error).__name__}: {error}"
        raise BackendError(
            f"engine {name}", got=got, expected="its library", fix=INSTALL[name]
        ) from error
    errors: list[str] = []
    return Engine(name, module, _logger(module, errors), errors)


def _logger(module: Any, errors: list[str]) -> Any:
    class Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                errors.append(message)

    return Logger()
