"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from eri_runtime.errors import BackendError
from eri_runtime.executors.base import Arrays, Executor, check_inputs
from eri_runtime.spec import ComponentSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

INSTALL = "pip install 'eri-diffusion[cpu]'"


def refusal(spec: ComponentSpec) -> str | None:
    """Why this component cannot run here, in a few words, or None."""
    if importlib.util.find_spec("onnxruntime") is None:
        return f"onnxruntime is not installed: {INSTALL}"
    if spec.precision == "bf16":
        return "ONNX Runtime's CPU kernels have no bfloat16: export with --precision fp32 or fp16"
    return None


class OrtExecutor(Executor):
    """One `InferenceSession`; the graph's external weights are read from beside it."""

    def __init__(self, graph: Path, spec: ComponentSpec, *, threads: int | None = None) -> None:
        """Open `graph`; raises `BackendError` where ONNX Runtime is missing or refuses it."""
        if reason := refusal(spec):
            raise BackendError(graph, got=reason, expected="a component that runs on the CPU")
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self.spec = spec
        self.name = graph.parent.name
        try:
            self._session = ort.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            expected = f"a graph that ONNX Runtime {ort.__version__} opens"
            raise BackendError(graph, got=error, expected=expected) from error

    def run(self, inputs: Arrays) -> dict[str, NDArray]:
        check_inputs(self.name, self.spec, inputs)
        names = [output.name for output in self.spec.outputs]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def close(self) -> None:
        self._session = None
