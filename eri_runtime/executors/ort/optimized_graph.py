"""A graph that ONNX Runtime has optimised once, for sessions with other weights.

Opening a session takes its time for reading and optimising the graph, for copies of convolutions'
weights in blocks and of linear layers' weights transposed, and for packing the latter. Here all
but the packing is done once. While the graph is optimised the weights of linear layers are inputs:
nothing can be computed from values that are not there, so no value of an older weight is kept. In
the result they are weights again, which a session packs as it does those of a file. So it computes
the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import read_tensors
from eri_runtime.errors import BackendError
from eri_runtime.executors.base import Arrays, Settings
from eri_runtime.executors.onnx_linear_weights import (
    external_tensors,
    inputs_as_weights,
    linear_weights,
)
from eri_runtime.executors.onnx_message import ExternalTensor
from eri_runtime.executors.onnx_weights import weights_as_inputs
from eri_runtime.executors.ort.engine_errors import OrtErrors
from eri_runtime.executors.ort.provider import Provider
from eri_runtime.executors.ort.session_options import new_session, options_of_session, ort_value
from eri_runtime.unfinished import temporary_folder

GRAPH, OPTIMIZED, VALUES = "graph.onnx", "optimized.onnx", "values"  # in a temporary folder
SMALLEST = 1024  # bytes of a value that is kept outside of the graph
# TensorProto.DataType of ONNX
TYPES: Mapping[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
}


class OptimizedGraph:
    """One graph as ONNX Runtime optimised it, and all of its values but linear layers' weights.

    Values are copies in memory, which the sessions share. Linear layers' weights that no one
    replaces are pages of the weights file.
    """

    def __init__(self, graph: Path, weights: Path, provider: Provider, settings: Settings) -> None:
        """Reads a graph; the first `open` optimises it.

        Args:
            graph: The ONNX file.
            weights: Its weights file.
            provider: The execution provider.
            settings: Options for the sessions.

        Raises:
            OSError: If the graph cannot be read.
            ValueError: If it is damaged.
        """
        self._name, self._provider, self._settings = graph, provider, settings
        self._stored = read_tensors(weights)
        self._shapes = linear_weights(graph.read_bytes())
        self._optimized: tuple[bytes, Mapping[str, Any]] | None = None

    def takes(self, overrides: Arrays) -> bool:
        """Returns whether all of these weights can be replaced."""
        return bool(self._shapes) and overrides.keys() <= self._shapes.keys()

    def open(self, overrides: Arrays) -> Any:
        """Opens a session.

        Args:
            overrides: The weights to replace. They must not change while the session is open.

        Raises:
            BackendError: If ONNX Runtime refuses the graph.
            OSError: If there is no room for temporary files.
        """
        import onnxruntime as ort

        if self._optimized is None:
            self._optimized = self._optimize()
        graph, held = self._optimized
        options = options_of_session(self._provider, self._settings)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        weights = {name: overrides.get(name, self._stored[name]) for name in self._shapes}
        values = {**held, **{name: ort_value(each) for name, each in weights.items()}}
        with temporary_folder() as folder, OrtErrors(self._name, "opens"):
            (folder / VALUES).touch()  # ONNX Runtime reads none of it, but it must exist
            (folder / GRAPH).write_bytes(graph)
            for name, value in values.items():
                options.add_initializer(name, value)
            session = self._session(folder / GRAPH, options)
        session.values = values  # the session does not own their memory
        return session

    def _optimize(self) -> tuple[bytes, Mapping[str, Any]]:
        """Returns the optimised graph and its values by name."""
        as_inputs, _ = weights_as_inputs(self._name.read_bytes(), self._shapes)
        with temporary_folder() as folder, OrtErrors(self._name, "opens"):
            (folder / GRAPH).write_bytes(as_inputs)
            options = options_of_session(self._provider, self._settings)
            options.optimized_model_filepath = str(folder / OPTIMIZED)
            entry = "session.optimized_model_external_initializers_"
            options.add_session_config_entry(entry + "file_name", VALUES)
            options.add_session_config_entry(entry + "min_size_in_bytes", str(SMALLEST))
            others = [each.name for each in external_tensors(as_inputs)]
            if others:
                values = [ort_value(self._stored[name]) for name in others]
                options.add_external_initializers(others, values)
            self._session(folder / GRAPH, options)
            optimized = (folder / OPTIMIZED).read_bytes()
            held = {
                tensor.name: ort_value(_values_of(tensor, folder / VALUES))
                for tensor in external_tensors(optimized)
            }
        return inputs_as_weights(optimized, self._shapes, VALUES), held

    def _session(self, graph: Path, options: Any) -> Any:
        """Opens a session on the provider."""
        return new_session(graph, self._provider, self._settings, options)


def _values_of(tensor: ExternalTensor, file: Path) -> NDArray[Any]:
    """Reads a tensor's values from a file. Raises `BackendError` for a type that NumPy lacks."""
    if tensor.data_type not in TYPES:
        got = f"a value of ONNX's type {tensor.data_type}"
        raise BackendError(tensor.name, got=got, expected="a type of NumPy's")
    dtype = np.dtype(TYPES[tensor.data_type])
    count, offset = int(np.prod(tensor.shape)), int(tensor.where.get("offset", 0))
    return np.fromfile(file, dtype, count, offset=offset).reshape(tensor.shape)
