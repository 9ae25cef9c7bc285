"""The parts of a denoiser on OpenVINO's CPU plugin, each compiled when its first inputs arrive."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eri_runtime.bundle import ComponentSpec
from eri_runtime.executors.base import Arrays, Settings
from eri_runtime.executors.heap import drop_file_pages
from eri_runtime.executors.onnx_weights import linked_weights, weights_file
from eri_runtime.executors.openvino.library import OpenVinoErrors, import_openvino
from eri_runtime.executors.openvino.model import (
    Compute,
    compile_model,
    compile_options,
    read_model,
)
from eri_runtime.executors.openvino.tensors import OpenVinoTensors
from eri_runtime.executors.parted_denoiser import EngineTensors, OpenPart

Shapes = dict[str, tuple[int, ...]]


class OpenVinoParts(OpenVinoTensors):
    """Opens parts; implements `PartEngine`."""

    def __init__(self, spec: ComponentSpec, compute: Compute, settings: Settings) -> None:
        self._spec = spec
        self._core, self._options = import_openvino().Core(), compile_options(compute, settings)

    def open(self, graph: Path, overrides: Arrays) -> OpenPart:
        linked = linked_weights(graph, self._spec)
        with OpenVinoErrors(graph):
            model = read_model(self._core, graph, overrides, linked)
        weights = weights_file(graph, self._spec)
        return _Part(self._core, graph, weights, model, self._options, (overrides, linked))


class _Part(OpenVinoTensors):
    """A part that is compiled for the shapes of its first call, and anew for any at others."""

    def __init__(
        self, core: Any, graph: Path, weights: Path, model: Any, options: Any, memory: object
    ) -> None:
        """Stores a model; `memory` holds arrays whose memory it uses."""
        self._core, self._graph, self._weights = core, graph, weights
        self._model, self._options, self._memory = model, options, memory
        self._request: Any = None
        self._shapes: Shapes | None = None  # of the compiled model; None: any
        self._lock = threading.Lock()  # a request runs one call at a time

    def __call__(self, inputs: EngineTensors, outputs: Sequence[str]) -> EngineTensors:
        with self._lock, OpenVinoErrors(self._graph):
            self._compile({name: tuple(tensor.shape) for name, tensor in inputs.items()})
            self._request.infer(dict(inputs), share_inputs=True)
            return {name: self.copied(self._request.get_tensor(name)) for name in outputs}

    def _compile(self, shapes: Shapes) -> None:
        """Makes sure that the compiled model takes these shapes."""
        if self._request is not None and self._shapes in (None, shapes):
            return
        self._shapes = shapes if self._request is None else None
        self._request = None  # frees its memory before the next one is compiled
        compiled = compile_model(self._core, self._model, self._shapes, self._options)
        drop_file_pages(self._weights)
        self._request = compiled.create_infer_request()
