"""The two engines that build plans: TensorRT and TensorRT for RTX, with the same API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from eri_runtime.bundle import EngineName
from eri_runtime.errors import UnknownNameError, short
from eri_runtime.executors import Library, load_library

TAGS: Mapping[EngineName, str] = {"tensorrt": "trt", "tensorrt-rtx": "rtx"}


@dataclass(frozen=True)
class Engine(Library):
    """An imported engine that can build plans."""

    @property
    def tag(self) -> str:
        """The engine and version in the name of a plan's file, such as rtx1.7.1."""
        return TAGS[self.name] + ".".join(self.version.split(".")[:3])

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities it builds for without such a GPU; none for TensorRT."""
        known = getattr(self.module, "ComputeCapability", None)
        names = [] if known is None else [name for name in known.__members__ if name[:2] == "SM"]
        return tuple(f"{name[2:-1]}.{name[-1]}" for name in names)


def load_engine(name: str) -> Engine:
    """Loads an engine.

    Raises `UnknownNameError` for another name, `BackendError` if the engine is not installed.
    """
    for known in get_args(EngineName):
        if name == known:
            return Engine(**vars(load_library(known)))
    expected = " or ".join(get_args(EngineName))
    raise UnknownNameError("engine", got=short(name), expected=expected)
