"""The parts of a denoiser on ONNX Runtime, each in a session that stays open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eri_runtime.bundle import ComponentSpec
from eri_runtime.executors.base import Arrays, Settings
from eri_runtime.executors.ort.capture_guard import device_call
from eri_runtime.executors.ort.engine_errors import OrtErrors
from eri_runtime.executors.ort.provider import Provider
from eri_runtime.executors.ort.session import OrtTensors, open_session
from eri_runtime.executors.parted_denoiser import EngineTensors, OpenPart


class OrtParts(OrtTensors):
    """Opens parts on one execution provider; implements `PartEngine`."""

    def __init__(self, provider: Provider, spec: ComponentSpec, settings: Settings) -> None:
        self._provider, self._spec, self._settings = provider, spec, settings

    def open(self, graph: Path, overrides: Arrays) -> OpenPart:
        session = open_session(graph, self._spec, self._provider, self._settings, {}, overrides)
        device, name = self._provider.device, graph.parent.name

        def run(inputs: EngineTensors, outputs: Sequence[str]) -> EngineTensors:
            with device_call(device), OrtErrors(name, "runs"):
                values = session.run_with_ort_values(list(outputs), dict(inputs))
            return dict(zip(outputs, values, strict=True))

        return run
