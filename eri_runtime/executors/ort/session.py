"""ONNX Runtime sessions: a component, or its segments, on one execution provider."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
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
from eri_runtime.executors.onnx_weights import linked_weights, weights_as_inputs
from eri_runtime.executors.ort.capture_guard import device_call
from eri_runtime.executors.ort.cuda_libraries import missing_libraries
from eri_runtime.executors.ort.engine_errors import ort_errors
from eri_runtime.executors.ort.provider import (
    CPU_PROVIDER,
    Provider,
    session_entries,
)

BFLOAT16 = 16  # TensorProto.BFLOAT16 of ONNX


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
    import onnxruntime as ort

    linked = linked_weights(graph, spec, follows_graph=True)
    if linked is not None:
        _, names = weights_as_inputs(graph.read_bytes())
        overrides = {name: overrides.get(name, linked[name]) for name in names}
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3
    session_options.enable_cpu_mem_arena = arena
    # planning where tensors lie allocates a second block next to the first run's, and saves no time
    session_options.enable_mem_pattern = False
    if settings.threads is not None:
        session_options.intra_op_num_threads = settings.threads
    for name, value in session_entries(provider, settings).items():
        session_options.add_session_config_entry(name, value)
    providers = [(provider.name, {**provider.options, **options})]
    disabled = provider.without(settings)
    with ort_errors(graph, "opens"):
        if overrides:
            values = [_ort_value(values) for values in overrides.values()]
            session_options.add_external_initializers(list(overrides), values)
        with device_call(provider.device):
            session = ort.InferenceSession(
                str(graph), session_options, providers=providers, disabled_optimizers=disabled
            )
    used = session.get_providers()[0]
    if used != provider.name:
        reason = "; ".join(["a session on " + used, *missing_libraries()])
        raise BackendError(graph, got=reason, expected=provider.name)
    return session


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
        self._open_session = partial(open_session, graph, spec, provider, settings, {})
        self._session, self._overrides = self._open_session(overrides), overrides

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        self._check(inputs)
        try:
            with device_call(self._device):
                found = self._session.run(self._names, inputs)
        except Exception:
            with ort_errors(self.name, "runs"):
                raise
        return dict(zip(self._names, found, strict=True))

    def replace(self, overrides: Arrays) -> None:
        if changed_tensors(self._overrides, overrides):
            session = self._open_session(overrides)
            with device_call(self._device):  # frees the old session's memory
                self._session, self._overrides = session, overrides

    def close(self) -> None:
        with device_call(self._device):
            self._session, self._overrides = None, FROM_FILE


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
        with device_call(self._provider.device), ort_errors(graph, "runs"):
            return dict(zip(names, session.run_with_ort_values(names, dict(inputs)), strict=True))


def _ort_value(values: NDArray[Any]) -> Any:
    """Returns a weight as an `OrtValue` over NumPy's memory.

    ONNX Runtime does not recognize NumPy's bfloat16, so its bits are passed with the ONNX type.
    """
    import onnxruntime as ort

    if values.dtype == ml_dtypes.bfloat16:
        bits = values.view(np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(values)
