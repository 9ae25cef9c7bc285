"""OpenVINO on the CPU: the same ONNX graphs in float32, or in bfloat16 where that is asked for.

Its cache of compiled models is left off: for an SDXL UNet of 158 million parameters it saved 0.7 s
of 1.5 and wrote 530 MB for each size of picture, and a stale entry would be a wrong picture.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eri_runtime.errors import BackendError
from eri_runtime.executors.base import (
    FROM_FILE,
    Arrays,
    Backend,
    Executor,
    Settings,
    check_inputs,
    moved,
)
from eri_runtime.spec import ComponentSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

Compute = Literal["f32", "bf16"]
Shapes = tuple[tuple[int, ...], ...]

TELEMETRY = "openvino_telemetry"
PRECISION = "INFERENCE_PRECISION_HINT"
USUAL = Settings()


@dataclass(frozen=True, kw_only=True)
class OpenVinoBackend(Backend):
    """OpenVINO's CPU plugin.

    `compute` bf16 rounds a float32 bundle to 8 bits in the denoiser and the VAE. Text encoders run
    once a prompt and stay float32: T5's residual stream lost a tenth of its size in bfloat16.
    """

    compute: Compute = "f32"

    def refusal(self, spec: ComponentSpec) -> str | None:
        """Why no component can run here, in a few words, or None: it runs every precision."""
        del spec
        if importlib.util.find_spec("openvino") is None:
            return "openvino is not installed: pip install 'eri-diffusion[openvino]'"
        if self.compute == "bf16" and "BF16" not in _capabilities():
            return "this processor has no bfloat16: use --backend openvino"
        return None

    def words(self, settings: Settings = USUAL) -> str:
        """The version, what it computes in, and the options it is opened with."""
        computes = {"f32": "float32", "bf16": "bfloat16 but for text encoders"}[self.compute]
        threads = settings.threads or "all cores"
        return f"OpenVINO {version('openvino')} CPU, {computes}, threads {threads}"

    def executor(
        self,
        graph: Path,
        spec: ComponentSpec,
        settings: Settings = USUAL,
        overrides: Arrays = FROM_FILE,
    ) -> Executor:
        """Open a component."""
        if reason := self.refusal(spec):
            raise BackendError(graph, got=reason, expected="a component for OpenVINO")
        encodes_text = graph.parent.name.startswith("text_encoder")
        compute: Compute = "f32" if encodes_text else self.compute
        return OpenVinoExecutor(graph, spec, compute, settings, overrides)

    def stepper(
        self,
        graph: Path,
        spec: ComponentSpec,
        settings: Settings = USUAL,
        overrides: Arrays = FROM_FILE,
    ) -> None:
        """None: the NumPy loop drives its denoiser."""

    def parts(self, spec: ComponentSpec, settings: Settings) -> OpenVinoParts:
        """What runs the segments of a component."""
        del spec
        return OpenVinoParts(self, settings)


OPENVINO = OpenVinoBackend()
OPENVINO_BF16 = OpenVinoBackend(compute="bf16")


class OpenVinoExecutor(Executor):
    """One graph, compiled when its first inputs come.

    Compiled for one set of shapes it is up to 1.5 times faster than for any, so the first shapes
    get that; when others come it is compiled once more, for any. Only one is held at a time.
    Other weights are other constants of the graph, which is compiled again.
    """

    def __init__(
        self,
        graph: Path,
        spec: ComponentSpec,
        compute: Compute = "f32",
        settings: Settings = USUAL,
        overrides: Arrays = FROM_FILE,
    ) -> None:
        """Read `graph`; raises `BackendError` where OpenVINO refuses it."""
        self.spec = spec
        self.name = graph.parent.name
        self._graph = graph
        self._core = _openvino().Core()
        self._options = _options(compute, settings)
        self._request: Any = None
        self._shapes: Shapes | None = None  # those it is compiled for; None for any
        self._guessed = True  # no call had them yet
        self._lock = threading.Lock()  # a request runs one call at a time
        with _refused(graph):
            self._model = _read(self._core, graph, overrides)
        self._overrides = overrides  # whose memory the model may use

    def run(self, inputs: Arrays) -> dict[str, NDArray]:
        check_inputs(self.name, self.spec, inputs)
        with self._lock, _refused(self._graph):
            self._compile(tuple(inputs[tensor.name].shape for tensor in self.spec.inputs))
            self._guessed = False
            self._request.infer(dict(inputs), share_inputs=True)
            # the request writes its next outputs where these are
            return {
                output.name: self._request.get_tensor(output.name).data.copy()
                for output in self.spec.outputs
            }

    def prepare(self, sizes: Mapping[str, int]) -> None:
        """Compile for the shapes of these sizes."""
        shapes = tuple(
            tuple(sizes[each] if isinstance(each, str) else each for each in tensor.shape)
            for tensor in self.spec.inputs
        )
        with self._lock, _refused(self._graph):
            if self._request is None:
                self._compile(shapes)

    def replace(self, overrides: Arrays) -> None:
        if not moved(self._overrides, overrides):
            return
        with self._lock, _refused(self._graph):
            model = _read(self._core, self._graph, overrides)
            if self._request is not None:
                self._request = self._compiled(model, self._shapes)
            self._model, self._overrides = model, overrides

    def close(self) -> None:
        self._request = self._model = None
        self._guessed = True
        self._overrides = FROM_FILE

    def _compile(self, shapes: Shapes) -> None:
        """Have a request for inputs of these shapes."""
        if self._request is not None and self._shapes in (None, shapes):
            return
        first = self._guessed
        self._request = None  # whose memory the next one may need
        self._shapes = shapes if first else None
        self._request = self._compiled(self._model, self._shapes)

    def _compiled(self, model: Any, shapes: Shapes | None) -> Any:
        """A request of a model, for one set of shapes or for any."""
        names = [tensor.name for tensor in self.spec.inputs]
        fixed = None if shapes is None else dict(zip(names, shapes, strict=True))
        return _compiled(self._core, model, fixed, self._options)


class OpenVinoParts:
    """OpenVINO, compiled anew for the shapes of every call."""

    def __init__(self, backend: OpenVinoBackend, settings: Settings) -> None:
        self._library = _openvino()
        self._core, self._options = self._library.Core(), _options(backend.compute, settings)

    def given(self, array: NDArray) -> Any:
        return self._library.Tensor(array, shared_memory=True)

    def run(
        self, graph: Path, inputs: Mapping[str, Any], outputs: Iterable[str], overrides: Arrays
    ) -> dict[str, Any]:
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        with _refused(graph):
            model = _read(self._core, graph, overrides)
            request = _compiled(self._core, model, shapes, self._options)
            request.infer(dict(inputs), share_inputs=True)
            made = {}
            for name in outputs:  # the request's own would keep its memory
                value = request.get_tensor(name)
                made[name] = self._library.Tensor(value.element_type, value.shape)
                value.copy_to(made[name])
        return made

    def array(self, value: Any) -> NDArray:
        made: NDArray = value.data.copy()
        return made


def _read(core: Any, graph: Path, overrides: Arrays) -> Any:
    """The graph with other constants in the place of some; they keep their arrays' memory."""
    ov, model = _openvino(), core.read_model(graph)
    nodes = {op.get_friendly_name(): op for op in model.get_ops()} if overrides else {}
    for name, values in overrides.items():
        old = nodes[name]
        # as bits, since it knows not of NumPy's bfloat16
        bits = values.view(f"u{values.itemsize}")
        tensor = ov.Tensor(bits, old.get_output_shape(0), old.get_element_type())
        old.output(0).replace(ov.op.Constant(tensor, shared_memory=True).output(0))
    return model


def _options(compute: Compute, settings: Settings) -> Mapping[str, Any]:
    """What a graph is compiled with: threads pinned to cores wait for whatever else runs there."""
    chosen = {PRECISION: compute, "ENABLE_CPU_PINNING": False}
    threads = {} if settings.threads is None else {"INFERENCE_NUM_THREADS": settings.threads}
    return {**chosen, **threads}


def _compiled(
    core: Any,
    model: Any,
    shapes: Mapping[str, tuple[int, ...]] | None,
    options: Mapping[str, Any],
) -> Any:
    """A request of a model for inputs of these shapes, or of any; the model stays as it is."""
    model = model.clone()
    if options[PRECISION] == "bf16":
        _keep_phases(model)
    if shapes is not None:
        model.reshape(dict(shapes))
    return core.compile_model(model, "CPU", dict(options)).create_infer_request()


def _keep_phases(model: Any) -> None:
    """Have sines and cosines, and all that leads to them, computed in float32.

    In bfloat16 the clock, up to 1000, and its multiples would be wrong by radians, and so would the
    angles of rotary embeddings. The engine rounds nothing that leads to an output but through no
    product of matrices, so they are made outputs, which nobody reads.
    """
    for op in model.get_ops():
        if op.get_type_name() in ("Sin", "Cos"):
            model.add_outputs(op.output(0))


@contextmanager
def _refused(graph: Path) -> Iterator[None]:
    """OpenVINO's exceptions are bare RuntimeErrors of several lines."""
    try:
        yield
    except RuntimeError as error:
        expected = f"a graph that OpenVINO {version('openvino')} runs"
        got = " ".join(str(error).split())
        raise BackendError(graph, got=got, expected=expected) from error


def _openvino() -> Any:
    """The module, imported so that it does not report to its maker that it was.

    Its import sends an event over the network and leaves an identifier in the home folder; without
    its telemetry package it puts a stub of its own in the place.
    """
    if "openvino" not in sys.modules:
        missing: Any = None
        sys.modules.setdefault(TELEMETRY, missing)
    import openvino

    return openvino


def _capabilities() -> list[str]:
    """What the processor computes in, such as FP32 and BF16."""
    found: list[str] = _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return found
