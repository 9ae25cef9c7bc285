"""ONNX Runtime: sessions on its CPU and CUDA providers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

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
from eri_runtime.executors.gpu import compute_capability
from eri_runtime.spec import ComponentSpec, Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from eri_runtime.executors.stepper import Stepper

USUAL = Settings()
BFLOAT16 = 16  # as ONNX numbers its types


@dataclass(frozen=True, kw_only=True)
class OrtBackend(Backend):
    """An execution provider of ONNX Runtime.

    `device` is where its tensors lie; `lacks` says why it cannot run a precision; `options` are
    the provider's own; `copying` are the optimizers that make copies of weights.
    """

    provider: str
    device: str
    extra: str
    lacks: Mapping[Precision, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    copying: tuple[str, ...] = ()

    def refusal(self, spec: ComponentSpec) -> str | None:
        """Why this component cannot run here, in a few words, or None."""
        if importlib.util.find_spec("onnxruntime") is None:
            return f"onnxruntime is not installed: pip install 'eri-diffusion[{self.extra}]'"
        if reason := self.lacks.get(spec.precision):
            return reason
        return _no_cuda() if self.device == "cuda" else None

    def words(self, settings: Settings = USUAL) -> str:
        """The provider and every option, as a session is opened."""
        options = {**self.options, **_entries(settings), "threads": settings.threads or "all cores"}
        if settings.low_memory and self.copying:
            options["without"] = " and ".join(self.copying)
        return f"{self.provider}, " + ", ".join(f"{name} {each}" for name, each in options.items())

    def executor(
        self,
        graph: Path,
        spec: ComponentSpec,
        settings: Settings = USUAL,
        overrides: Arrays = FROM_FILE,
    ) -> Executor:
        """Open a component."""
        return OrtExecutor(graph, spec, self, settings, overrides)

    def stepper(
        self,
        graph: Path,
        spec: ComponentSpec,
        settings: Settings = USUAL,
        overrides: Arrays = FROM_FILE,
    ) -> Stepper:
        """Open a step graph."""
        from eri_runtime.executors.ort_step import OrtStepper

        return OrtStepper(graph, spec, self, settings, overrides)

    def parts(self, spec: ComponentSpec, settings: Settings) -> OrtParts:
        """What runs the segments of a component."""
        return OrtParts(self, spec, settings)


CPU = OrtBackend(
    provider="CPUExecutionProvider",
    device="cpu",
    extra="cpu",
    copying=("ConstantFolding", "NchwcTransformer"),  # of transposed and of blocked weights
    lacks={
        "bf16": "ONNX Runtime's CPU kernels have no bfloat16: export with --precision fp32 or fp16"
    },
)
# TF32 would round float32 products to 11 bits; an arena that doubles can take twice the weights
CUDA = OrtBackend(
    provider="CUDAExecutionProvider",
    device="cuda",
    extra="gpu",
    options={"device_id": "0", "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"},
)


def open_session(
    graph: Path,
    spec: ComponentSpec,
    backend: OrtBackend,
    settings: Settings,
    options: Mapping[str, str],
    overrides: Arrays,
    *,
    arena: bool = True,
) -> Any:
    """An `InferenceSession` of `graph`; `options` are more of the provider's.

    An `arena` keeps the memory of a run for the next; without one each tensor's is given back.
    `overrides` take the place of tensors of the weights file before the graph is optimised, so
    nothing is left of those, and the session is the one that a file with them in it would give.
    Raises `BackendError` where ONNX Runtime is missing, refuses the graph or the provider.
    """
    if reason := backend.refusal(spec):
        raise BackendError(graph, got=reason, expected=f"a component for {backend.provider}")
    import onnxruntime as ort

    if backend.device == "cuda":
        ort.preload_dlls()  # from the wheels of NVIDIA, where the system has none
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3
    session_options.enable_cpu_mem_arena = arena
    # planning where tensors lie takes a second block beside the first run's, and saves no time
    session_options.enable_mem_pattern = False
    if settings.threads is not None:
        session_options.intra_op_num_threads = settings.threads
    for name, value in _entries(settings).items():
        session_options.add_session_config_entry(name, value)
    providers = [(backend.provider, {**backend.options, **options})]
    without = backend.copying if settings.low_memory else ()
    try:
        if overrides:
            values = [_ort_value(values) for values in overrides.values()]
            session_options.add_external_initializers(list(overrides), values)
        session = ort.InferenceSession(
            str(graph), session_options, providers=providers, disabled_optimizers=without
        )
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        expected = f"a graph that ONNX Runtime {ort.__version__} opens"
        raise BackendError(graph, got=error, expected=expected) from error
    used = session.get_providers()[0]
    if used != backend.provider:
        raise BackendError(graph, got=f"a session on {used}", expected=backend.provider)
    return session


class OrtExecutor(Executor):
    """One `InferenceSession`; the graph's external weights are read from beside it.

    Other weights are a new session. The alternative was measured and is faster still: weights that
    are written in place of the old. It costs the prepacked ones, and an optimizer that has read a
    weight keeps the old one without a word; `benchmarks/swap_routes.py` has the figures.
    """

    def __init__(
        self,
        graph: Path,
        spec: ComponentSpec,
        backend: OrtBackend = CPU,
        settings: Settings = USUAL,
        overrides: Arrays = FROM_FILE,
    ) -> None:
        """Open `graph`; raises `BackendError` where ONNX Runtime is missing or refuses it."""
        self.spec = spec
        self.name = graph.parent.name
        self._opened = partial(open_session, graph, spec, backend, settings, {})
        self._session, self._overrides = self._opened(overrides), overrides

    def run(self, inputs: Arrays) -> dict[str, NDArray]:
        check_inputs(self.name, self.spec, inputs)
        names = [output.name for output in self.spec.outputs]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def replace(self, overrides: Arrays) -> None:
        if moved(self._overrides, overrides):
            self._session, self._overrides = self._opened(overrides), overrides

    def close(self) -> None:
        self._session, self._overrides = None, FROM_FILE


class OrtParts:
    """ONNX Runtime, on mapped weights: to prepack them takes longer than they save in one run.

    Without an arena of memory: the values that a part leaves would keep all of its arena.
    """

    def __init__(self, backend: OrtBackend, spec: ComponentSpec, settings: Settings) -> None:
        self._backend, self._spec = backend, spec
        self._settings = replace(settings, low_memory=True)

    def given(self, array: NDArray) -> Any:
        import onnxruntime as ort

        return ort.OrtValue.ortvalue_from_numpy(array)

    def run(
        self, graph: Path, inputs: Mapping[str, Any], outputs: Iterable[str], overrides: Arrays
    ) -> dict[str, Any]:
        names = list(outputs)
        session = open_session(
            graph, self._spec, self._backend, self._settings, {}, overrides, arena=False
        )
        return dict(zip(names, session.run_with_ort_values(names, dict(inputs)), strict=True))

    def array(self, value: Any) -> NDArray:
        made: NDArray = value.numpy()
        return made


def _ort_value(values: NDArray) -> Any:
    """A weight where NumPy has it; its bfloat16 is a type that ONNX Runtime has to be told of."""
    import onnxruntime as ort

    if values.dtype == ml_dtypes.bfloat16:
        bits = values.view(np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(values)


def _entries(settings: Settings) -> dict[str, str]:
    """Session entries: prepacked weights are copies, and without them they stay file pages."""
    return {"session.disable_prepacking": "1"} if settings.low_memory else {}


def _no_cuda() -> str | None:
    """Why CUDA cannot be used: the wheel without it, or no GPU."""
    import onnxruntime as ort

    if CUDA.provider not in ort.get_available_providers():
        return "this onnxruntime has no CUDA: pip install 'eri-diffusion[gpu]'"
    return "no NVIDIA GPU" if compute_capability() is None else None
