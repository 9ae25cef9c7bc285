"""Imports OpenVINO without its telemetry, and turns its exceptions into `BackendError`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def openvino_errors(graph: Path) -> Iterator[None]:
    """Raises OpenVINO's errors as `BackendError`: they are bare RuntimeErrors of several lines."""
    try:
        yield
    except RuntimeError as error:
        expected = f"a graph that OpenVINO {version('openvino')} runs"
        got = " ".join(str(error).split())
        raise BackendError(graph, got=got, expected=expected) from error
