"""ONNX Runtime as a backend: its CPU provider, and its CUDA provider with and without TF32."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from eri_runtime.bundle import Bundle, ComponentSpec
from eri_runtime.executors.backend import Backend
from eri_runtime.executors.base import DEFAULT_SETTINGS, FROM_FILE, Arrays, Executor, Settings
from eri_runtime.executors.ort.parts import OrtParts
from eri_runtime.executors.ort.provider import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    CUDA_TF32_PROVIDER,
    Provider,
    form_of,
    graph_for,
)
from eri_runtime.executors.ort.session import OrtExecutor, OrtSegmentRunner
from eri_runtime.executors.ort.step_graph import OrtStepper
from eri_runtime.executors.step_graph import Stepper

# how a graph's file names the operator: field 4 of a NodeProto, a string of 6 bytes
RESIZE = b"\x22\x06Resize"


@dataclass(frozen=True)
class OrtBackend(Backend):
    """ONNX Runtime on one execution provider.

    Attributes:
        provider: The execution provider.
        root: The folder of the bundle it is bound to. None: of no bundle, so that only what a
            component's description says is checked, and not its graph.
    """

    provider: Provider
    root: Path | None = None

    @property
    def computes_on_cpu(self) -> bool:
        """Whether this is the CPU provider."""
        return self.provider.device == "cpu"

    def of(self, bundle: Bundle) -> OrtBackend:
        """Binds the CUDA provider to the bundle, whose graphs it checks before any is opened."""
        return replace(self, root=bundle.root) if self.provider.device == "cuda" else self

    def graph_file(self, graph: str, files: Collection[str]) -> str:
        """Returns the graph's form for the provider's device, if the bundle has one, else it."""
        form = form_of(Path(graph), self.provider.device).as_posix()
        return form if form in files else graph

    def refusal(self, spec: ComponentSpec) -> str | None:
        """Returns why this component cannot run on this machine, in a few words, or None."""
        if reason := self.provider.refusal(spec):
            return reason
        if self.root is None or spec.precision != "bf16":
            return None
        return _resize_refusal(graph_for(self.root / spec.graph, self.provider.device))

    def words(self, settings: Settings = DEFAULT_SETTINGS) -> str:
        """Describes the provider and every option of a session, in one line."""
        return self.provider.words(settings)

    def executor(
        self,
        graph: Path,
        spec: ComponentSpec,
        settings: Settings = DEFAULT_SETTINGS,
        overrides: Arrays = FROM_FILE,
    ) -> Executor:
        """Opens a component. Raises `BackendError` if ONNX Runtime is missing or refuses it."""
        return OrtExecutor(graph, spec, self.provider, settings, overrides)

    def stepper(
        self,
        graph: Path,
        spec: ComponentSpec,
        settings: Settings = DEFAULT_SETTINGS,
        overrides: Arrays = FROM_FILE,
    ) -> Stepper:
        """Opens a step graph. Raises `BackendError` if ONNX Runtime is missing or refuses it."""
        return OrtStepper(graph, spec, self.provider, settings, overrides)

    def part_engine(self, spec: ComponentSpec, settings: Settings) -> OrtParts:
        """Returns what opens the parts of a denoiser."""
        return OrtParts(self.provider, spec, settings)

    def parts(self, spec: ComponentSpec, settings: Settings) -> OrtSegmentRunner:
        """Returns a runner for the segments of a component."""
        return OrtSegmentRunner(self.provider, spec, settings)


CPU = OrtBackend(CPU_PROVIDER)
CUDA = OrtBackend(CUDA_PROVIDER)
CUDA_TF32 = OrtBackend(CUDA_TF32_PROVIDER)


def _resize_refusal(graph: Path) -> str | None:
    """Returns why a bfloat16 graph cannot run on CUDA, or None: Resize has no such kernel there.

    Bundles of the first exporters contain it in their VAE and in SDXL's UNet.
    """
    if RESIZE not in graph.read_bytes():
        return None
    return "CUDA has no bfloat16 Resize: export it again, or with --precision fp16 or fp32"
