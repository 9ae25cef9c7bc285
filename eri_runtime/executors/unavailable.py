"""A backend that keeps its place and its name, and says why it runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from eri_runtime.errors import BackendError
from eri_runtime.executors.base import Backend, Settings
from eri_runtime.spec import ComponentSpec


@dataclass(frozen=True)
class Unavailable(Backend):
    """Refuses everything, for one `reason`."""

    reason: str

    def refusal(self, spec: ComponentSpec) -> str:
        """The reason."""
        del spec
        return self.reason

    def words(self, settings: Settings) -> str:
        """The reason."""
        del settings
        return self.reason

    def executor(self, graph: Path, spec: ComponentSpec, settings: Settings) -> NoReturn:
        """Raise `BackendError`."""
        del spec, settings
        raise BackendError(graph, got=self.reason, expected="another backend")

    def stepper(self, graph: Path, spec: ComponentSpec, settings: Settings) -> NoReturn:
        """Raise `BackendError`."""
        self.executor(graph, spec, settings)


TENSORRT = Unavailable("plans are built by `eri build` and not run yet: use cuda")
