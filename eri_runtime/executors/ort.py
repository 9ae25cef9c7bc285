"""ONNX Runtime: sessions on its CPU and CUDA providers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eri_runtime.errors import BackendError
from eri_runtime.executors.base import Arrays, Backend, Executor, Settings, check_inputs
from eri_runtime.executors.gpu import compute_capability
from eri_runtime.spec import ComponentSpec, Precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from eri_runtime.executors.stepper import Stepper

USUAL = Settings()


@dataclass(frozen=True, kw_only=True)
class OrtBackend(Backend):
    """An execution provider of ONNX Runtime.

    `device` is where its tensors lie; `lacks` says why it cannot run a precision; `options` are
    the provider's own.
    """

    provider: str
    device: str
    extra: str
    lacks: Mapping[Precision, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

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
        return f"{self.provider}, " + ", ".join(f"{name} {each}" for name, each in options.items())

    def executor(self, graph: Path, spec: ComponentSpec, settings: Settings = USUAL) -> Executor:
        """Open a component."""
        return OrtExecutor(graph, spec, self, settings)

    def stepper(self, graph: Path, spec: ComponentSpec, settings: Settings = USUAL) -> Stepper:
        """Open a step graph."""
        from eri_runtime.executors.ort_step import OrtStepper

        return OrtStepper(graph, spec, self, settings)


CPU = OrtBackend(
    provider="CPUExecutionProvider",
    device="cpu",
    extra="cpu",
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
    graph: Path, spec: ComponentSpec, backend: OrtBackend, settings: Settings, **options: str
) -> Any:
    """An `InferenceSession` of `graph`; `options` are more of the provider's.

    Raises `BackendError` where ONNX Runtime is missing, refuses the graph or the provider.
    """
    if reason := backend.refusal(spec):
        raise BackendError(graph, got=reason, expected=f"a component for {backend.provider}")
    import onnxruntime as ort

    if backend.device == "cuda":
        ort.preload_dlls()  # from the wheels of NVIDIA, where the system has none
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3
    if settings.threads is not None:
        session_options.intra_op_num_threads = settings.threads
    for name, value in _entries(settings).items():
        session_options.add_session_config_entry(name, value)
    providers = [(backend.provider, {**backend.options, **options})]
    try:
        session = ort.InferenceSession(str(graph), session_options, providers=providers)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        expected = f"a graph that ONNX Runtime {ort.__version__} opens"
        raise BackendError(graph, got=error, expected=expected) from error
    used = session.get_providers()[0]
    if used != backend.provider:
        raise BackendError(graph, got=f"a session on {used}", expected=backend.provider)
    return session


class OrtExecutor(Executor):
    """One `InferenceSession`; the graph's external weights are read from beside it."""

    def __init__(
        self,
        graph: Path,
        spec: ComponentSpec,
        backend: OrtBackend = CPU,
        settings: Settings = USUAL,
    ) -> None:
        """Open `graph`; raises `BackendError` where ONNX Runtime is missing or refuses it."""
        self.spec = spec
        self.name = graph.parent.name
        self._session = open_session(graph, spec, backend, settings)

    def run(self, inputs: Arrays) -> dict[str, NDArray]:
        check_inputs(self.name, self.spec, inputs)
        names = [output.name for output in self.spec.outputs]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def close(self) -> None:
        self._session = None


def _entries(settings: Settings) -> dict[str, str]:
    """Session entries: prepacked weights are copies, and without them they stay file pages."""
    return {"session.disable_prepacking": "1"} if settings.low_memory else {}


def _no_cuda() -> str | None:
    """Why CUDA cannot be used: the wheel without it, or no GPU."""
    import onnxruntime as ort

    if CUDA.provider not in ort.get_available_providers():
        return "this onnxruntime has no CUDA: pip install 'eri-diffusion[gpu]'"
    return "no NVIDIA GPU" if compute_capability() is None else None
