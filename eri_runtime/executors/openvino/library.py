"""Imports OpenVINO without its telemetry, and turns its exceptions into `BackendError`."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eri_runtime.errors import BackendError

TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """Imports OpenVINO with its telemetry turned off.

    A plain import sends an event over the network and writes an identifier to the home folder.
    Without its telemetry package OpenVINO falls back to a stub that does neither.
    """
    if "openvino" not in sys.modules:
        missing: Any = None  # makes `import openvino_telemetry` fail
        sys.modules.setdefault(TELEMETRY, missing)
    import openvino

    return openvino


def cpu_capabilities() -> list[str]:
    """Returns the number formats that the processor computes in, such as FP32 and BF16."""
    names: list[str] = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return names


class OpenVinoErrors:
    """A context that raises OpenVINO's errors, RuntimeErrors of several lines, as `BackendError`.

    It is no generator, as every step enters one.

    Args:
        graph: The graph, for the message.
    """

    __slots__ = ("_graph",)

    def __init__(self, graph: Path) -> None:
        self._graph = graph

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, RuntimeError):
            expected = f"a graph that OpenVINO {version('openvino')} runs"
            got = " ".join(str(error).split())
            raise BackendError(self._graph, got=got, expected=expected) from error
