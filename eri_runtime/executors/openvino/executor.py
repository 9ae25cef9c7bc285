"""Runs a component on OpenVINO's CPU plugin, whole or one segment at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eri_runtime.bundle import ComponentSpec
from eri_runtime.executors.base import (
    DEFAULT_SETTINGS,
    FROM_FILE,
    Arrays,
    Executor,
    InputCheck,
    Settings,
    changed_tensors,
    shape_of,
)
from eri_runtime.executors.heap import drop_file_pages
from eri_runtime.executors.onnx_weights import linked_weights, weights_file
from eri_runtime.executors.openvino.compiled_models import (
    REFUSED,
    WITHOUT_WEIGHTS,
    CompiledModels,
    exported,
)
from eri_runtime.executors.openvino.gated_mlp import PRECISION, safe_options
from eri_runtime.executors.openvino.library import OpenVinoErrors, import_openvino
from eri_runtime.executors.openvino.model import (
    Compute,
    compile_model,
    compile_options,
    read_model,
)
from eri_runtime.executors.openvino.tensors import OpenVinoTensors, Request

if TYPE_CHECKING:
    from numpy.typing import NDArray

Shapes = tuple[tuple[int, ...], ...]
# of the largest output: a model that is opened from a file may sum in another order
TOLERANCES = {"f32": 1e-4, "bf16": 1e-2}


class OpenVinoExecutor(Executor):
    """A graph that is compiled when its first inputs arrive.

    A model compiled for fixed shapes is up to 1.5 times faster than one for dynamic shapes. So the
    first call compiles for its own shapes, and the first call with other shapes compiles once more,
    for any shape. Only one compiled model is open. New weights are new constants of the graph, so
    `replace` compiles again.

    With `kept`, a model that another process compiled is opened from its file. `keep` writes
    what was compiled here. Both are for fixed shapes and the file's own weights.
    """

    def __init__(
        self,
        graph: Path,
        spec: ComponentSpec,
        compute: Compute = "f32",
        settings: Settings = DEFAULT_SETTINGS,
        overrides: Arrays = FROM_FILE,
        kept: CompiledModels | None = None,
    ) -> None:
        """Reads `graph`. Raises `BackendError` if OpenVINO refuses it."""
        self.spec = spec
        self.name = graph.parent.name
        self._check = InputCheck(self.name, spec)
        self._graph = graph
        self._core = import_openvino().Core()
        self._request: Request | None = None
        self._shapes: Shapes | None = None  # shapes of the compiled model; None: any
        self._has_run = False  # until then a compiled model comes from `prepare`
        self._lock = threading.Lock()  # a request runs one call at a time
        self._linked = linked_weights(graph, spec)  # the model uses their memory
        with OpenVinoErrors(graph):
            self._model = self._read_model(overrides)
            options = compile_options(compute, settings)
            self._options = safe_options(self._core, self._model, options)
        self._overrides = overrides  # the model may use their memory
        self._kept = kept if self._linked is None else None  # constants of memory have no offset
        # the model that was compiled for the next run, and its shapes
        self._fresh: tuple[Any, Mapping[str, tuple[int, ...]]] | None = None
        # what is to be kept of it, once the weights are verified
        self._unkept: tuple[bytes, Mapping[str, tuple[int, ...]]] | None = None

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        self._check(inputs)
        with self._lock, OpenVinoErrors(self._graph):
            return self._run(inputs)

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Runs the component; needs the lock."""
        self._compile(tuple([inputs[tensor.name].shape for tensor in self.spec.inputs]))
        self._has_run = True
        outputs = self._infer(inputs)
        return outputs if self._fresh is None else self._continued(inputs, outputs)

    def _infer(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Runs the compiled model."""
        assert self._request is not None  # noqa: S101 `_compile` creates it
        self._request.infer(inputs)
        # copied: the next call overwrites the request's own output tensors
        return {
            output.name: self._request.output(output.name).copy() for output in self.spec.outputs
        }

    def prepare(self, sizes: Mapping[str, int]) -> None:
        """Compiles for the shapes that `sizes` give, unless a model is compiled already."""
        shapes = tuple(shape_of(tensor, sizes) for tensor in self.spec.inputs)
        with self._lock, OpenVinoErrors(self._graph):
            if self._request is None:
                self._compile(shapes)

    def replace(self, overrides: Arrays) -> None:
        if not changed_tensors(self._overrides, overrides):
            return
        with self._lock, OpenVinoErrors(self._graph):
            model = self._read_model(overrides)
            if self._request is not None:
                self._request = self._create_request(model, self._shapes, overrides)
            self._model, self._overrides = model, overrides

    def keep(self) -> None:
        if self._unkept is None:
            return  # without waiting, as every step asks
        with self._lock:
            unkept, self._unkept = self._unkept, None
            if self._kept is not None and unkept is not None:
                self._kept.keep(self._core, *unkept, self._options)

    def _continued(
        self, inputs: Arrays, outputs: dict[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Goes on with the model that later processes will open, so that all give the same bits.

        Returns what it makes of the first inputs. If that is not nearly `outputs`, the model is
        compiled anew, by later processes too.
        """
        assert self._fresh is not None  # noqa: S101 checked by the caller
        (model, shapes), self._fresh = self._fresh, None
        if not (data := exported(model)):
            return outputs
        del model
        self._request = None  # frees its memory before the next one is opened
        found = self._opened_outputs(data, inputs)
        if found is not None and are_alike(found, outputs, self._options[PRECISION]):
            self._unkept = data, shapes
            return found
        self._unkept = REFUSED, shapes
        compiled = compile_model(self._core, self._model, shapes, self._options)
        self._request = self._request_of(compiled)
        return outputs

    def _opened_outputs(self, data: bytes, inputs: Arrays) -> dict[str, NDArray[Any]] | None:
        """Opens a compiled model from a file's content and runs it; None if OpenVINO refuses."""
        model = None if self._kept is None else self._kept.opened(self._core, data, self._options)
        if model is None:
            return None
        self._request = self._request_of(model)
        try:
            return self._infer(inputs)
        except RuntimeError:
            return None

    def close(self) -> None:
        self._request = self._model = None
        self._fresh = self._unkept = None
        self._linked = None
        if self._kept is not None:
            self._kept.close()
        self._has_run = False
        self._overrides = FROM_FILE

    def _read_model(self, overrides: Arrays) -> Any:
        """Reads the graph with `overrides`."""
        return read_model(self._core, self._graph, overrides, self._linked)

    def _compile(self, shapes: Shapes) -> None:
        """Makes sure that the compiled model takes these shapes."""
        if self._request is not None and self._shapes in (None, shapes):
            return
        self._request = None  # frees its memory before the next one is compiled
        self._shapes = None if self._has_run else shapes
        self._request = self._create_request(self._model, self._shapes, self._overrides)

    def _create_request(self, model: Any, shapes: Shapes | None, overrides: Arrays) -> Request:
        """Returns a request for one set of shapes, or for any if None."""
        self._fresh = self._unkept = None
        return self._request_of(self._compiled_model(model, shapes, overrides))

    def _request_of(self, compiled: Any) -> Request:
        """Returns a request of a compiled model, which has what it needs of the weights file."""
        drop_file_pages(weights_file(self._graph, self.spec))
        return Request(compiled)

    def _compiled_model(self, model: Any, shapes: Shapes | None, overrides: Arrays) -> Any:
        """Opens a compiled model from its file, or compiles it."""
        names = [tensor.name for tensor in self.spec.inputs]
        by_name = None if shapes is None else dict(zip(names, shapes, strict=True))
        if self._kept is None or by_name is None or overrides:
            return compile_model(self._core, model, by_name, self._options)
        found = self._kept.load(self._core, by_name, self._options)
        if found == REFUSED:
            return compile_model(self._core, model, by_name, self._options)
        if found is not None:
            return found
        options = {**self._options, **WITHOUT_WEIGHTS}
        found = compile_model(self._core, model, by_name, options)
        self._fresh = found, by_name
        return found


def are_alike(found: Arrays, expected: Arrays, compute: Compute) -> bool:
    """Returns whether outputs differ by rounding only."""
    return all(
        abs(found[name] - values).max() <= TOLERANCES[compute] * abs(values).max()
        for name, values in expected.items()
    )


class OpenVinoSegmentRunner(OpenVinoTensors):
    """Runs segments on OpenVINO; each is compiled in every call, for the shapes of that call."""

    def __init__(self, spec: ComponentSpec, compute: Compute, settings: Settings) -> None:
        self._spec = spec
        self._core, self._options = import_openvino().Core(), compile_options(compute, settings)

    def run(
        self, graph: Path, inputs: Mapping[str, Any], outputs: Iterable[str], overrides: Arrays
    ) -> dict[str, Any]:
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        linked = linked_weights(graph, self._spec)
        with OpenVinoErrors(graph):
            model = read_model(self._core, graph, overrides, linked)
            compiled = compile_model(self._core, model, shapes, self._options)
            drop_file_pages(weights_file(graph, self._spec))
            request = compiled.create_infer_request()
            request.infer(dict(inputs), share_inputs=True)
            return {name: self.copied(request.get_tensor(name)) for name in outputs}
