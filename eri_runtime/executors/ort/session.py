"""ONNX Runtime sessions: a component, or its segments, on one execution provider."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from eri_runtime.bundle import ComponentSpec
from eri_runtime.errors import BackendError
from eri_runtime.executors.base import (
    DEFAULT_SETTINGS,
    FROM_FILE,
    Arrays,
    Executor,
    InputCheck,
    Settings,
    changed_tensors,
)
from eri_runtime.executors.onnx_weights import linked_weights, weights_as_inputs, weights_file
from eri_runtime.executors.ort.capture_guard import device_call
from eri_runtime.executors.ort.cuda_libraries import missing_libraries
from eri_runtime.executors.ort.engine_errors import OrtErrors
from eri_runtime.executors.ort.optimized_graph import OptimizedGraph
from eri_runtime.executors.ort.provider import CPU_PROVIDER, Provider
from eri_runtime.executors.ort.session_options import (
    NO_OPTIONS,
    new_session,
    options_of_session,
    ort_value,
)

log = logging.getLogger(__name__)


def open_session(
    graph: Path,
    spec: ComponentSpec,
    provider: Provider,
    settings: Settings,
    options: Mapping[str, str],
    overrides: Arrays,
    *,
    arena: bool = True,
) -> Any:
    """Opens an `InferenceSession` of `graph`; `options` are additional provider options.

    With an `arena`, the session keeps the memory of a run for the next one; without, it frees each
    tensor. `overrides` replace tensors of the weights file before the graph is optimized, so the
    session is the same as if the file contained them, and no replaced tensor stays in memory.
    Raises `BackendError` if ONNX Runtime is missing, or refuses the graph or the provider.
    """
    if reason := provider.refusal(spec):
        raise BackendError(graph, got=reason, expected=f"a component for {provider.name}")
    linked = linked_weights(graph, spec, follows_graph=True)
    if linked is not None:
        _, names = weights_as_inputs(graph.read_bytes())
        overrides = {name: overrides.get(name, linked[name]) for name in names}
    session_options = options_of_session(provider, settings, arena=arena)
    with OrtErrors(graph, "opens"):
        if overrides:
            values = [ort_value(values) for values in overrides.values()]
            session_options.add_external_initializers(list(overrides), values)
        with device_call(provider.device):
            session = new_session(graph, provider, settings, session_options, options)
    used = session.get_providers()[0]
    if used != provider.name:
        reason = "; ".join(["a session on " + used, *missing_libraries()])
        raise BackendError(graph, got=reason, expected=provider.name)
    return session


class SessionSource:
    """Opens the sessions of one graph, later ones from what ONNX Runtime made of it for the first.

    A session with other weights of linear layers alone is opened from an `OptimizedGraph`. That
    takes a quarter of the time and computes the same bits. Other sessions start from the file.
    """

    def __init__(
        self, graph: Path, spec: ComponentSpec, provider: Provider, settings: Settings
    ) -> None:
        self._from_file = partial(open_session, graph, spec, provider, settings)
        self._graph, self._weights = graph, weights_file(graph, spec)
        self._provider, self._settings = provider, settings
        self._optimized: OptimizedGraph | None = None
        self._optimizes = provider.device == "cpu" and not settings.low_memory

    def open(self, overrides: Arrays, options: Mapping[str, str] = NO_OPTIONS) -> Any:
        """Opens a session from the graph's file; see `open_session`."""
        return self._from_file(options, overrides)

    def reopen(self, overrides: Arrays) -> Any:
        """Opens a session with other weights than an earlier one. Raises `BackendError`."""
        if self._optimizes:
            try:
                if self._optimized is None:
                    self._optimized = OptimizedGraph(
                        self._graph, self._weights, self._provider, self._settings
                    )
                if self._optimized.takes(overrides):
                    return self._optimized.open(overrides)
            except (BackendError, OSError, ValueError) as error:
                self._optimized, self._optimizes = None, False
                log.info("%s is optimised anew for new weights: %s", self._graph, error)
        return self.open(overrides)

    def close(self) -> None:
        """Frees the optimised graph."""
        self._optimized = None


class OrtExecutor(Executor):
    """One `InferenceSession`. The weights file is read from the graph's folder.

    `replace` opens a new session. Writing new weights over the old ones was measured and is faster,
    but it rules out prepacked weights, and an optimizer that has read a weight silently keeps the
    old one. `benchmarks/swap_routes.py` has the figures.
    """

    def __init__(
        self,
        graph: Path,
        spec: ComponentSpec,
        provider: Provider = CPU_PROVIDER,
        settings: Settings = DEFAULT_SETTINGS,
        overrides: Arrays = FROM_FILE,
    ) -> None:
        """Opens a graph.

        Args:
            graph: The component's ONNX file.
            spec: The component's inputs, outputs and dimension ranges.
            provider: ONNX Runtime's execution provider. Default: the CPU.
            settings: Options for the session.
            overrides: Tensors that replace tensors of the weights file. Default: none.

        Raises:
            BackendError: If ONNX Runtime is missing or refuses the graph.
        """
        self.spec = spec
        self.name = graph.parent.name
        self._check, self._names = InputCheck(self.name, spec), [each.name for each in spec.outputs]
        self._device = provider.device
        self._source = SessionSource(graph, spec, provider, settings)
        self._session, self._overrides = self._source.open(overrides), overrides

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        self._check(inputs)
        with device_call(self._device), OrtErrors(self.name, "runs"):
            found = self._session.run(self._names, inputs)
        return dict(zip(self._names, found, strict=True))

    def replace(self, overrides: Arrays) -> None:
        if changed_tensors(self._overrides, overrides):
            session = self._source.reopen(overrides)
            with device_call(self._device):  # frees the old session's memory
                self._session, self._overrides = session, overrides

    def close(self) -> None:
        with device_call(self._device):
            self._session, self._overrides = None, FROM_FILE
        self._source.close()


class OrtTensors:
    """Arrays as `OrtValue`s, and back."""

    def to_tensor(self, array: NDArray[Any]) -> Any:
        """Returns an array as an `OrtValue` on the host."""
        import onnxruntime as ort

        return ort.OrtValue.ortvalue_from_numpy(array)

    def to_array(self, tensor: Any) -> NDArray[Any]:
        """Returns an `OrtValue` as an array."""
        array: NDArray[Any] = tensor.numpy()
        return array


class OrtSegmentRunner(OrtTensors):
    """Runs segments on ONNX Runtime, each in a session of its own.

    Weights are mapped from the file: prepacking them takes longer than it saves in a single run.
    Sessions use no memory arena: the values that a segment outputs would keep all of it alive.
    """

    def __init__(self, provider: Provider, spec: ComponentSpec, settings: Settings) -> None:
        self._provider, self._spec = provider, spec
        self._settings = replace(settings, low_memory=True)

    def run(
        self, graph: Path, inputs: Mapping[str, Any], outputs: Iterable[str], overrides: Arrays
    ) -> dict[str, Any]:
        names = list(outputs)
        session = open_session(
            graph, self._spec, self._provider, self._settings, {}, overrides, arena=False
        )
        with device_call(self._provider.device), OrtErrors(graph, "runs"):
            return dict(zip(names, session.run_with_ort_values(names, dict(inputs)), strict=True))
