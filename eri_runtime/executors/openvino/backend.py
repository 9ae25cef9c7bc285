"""OpenVINO as a backend: its CPU plugin in float32 and in bfloat16."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from eri_runtime.bundle import Bundle, ComponentSpec
from eri_runtime.errors import BackendError
from eri_runtime.executors.backend import Backend
from eri_runtime.executors.base import (
    DEFAULT_SETTINGS,
    FROM_FILE,
    Arrays,
    Executor,
    Settings,
    shape_of,
)
from eri_runtime.executors.openvino.compiled_models import CompiledModels
from eri_runtime.executors.openvino.executor import OpenVinoExecutor, OpenVinoSegmentRunner
from eri_runtime.executors.openvino.library import cpu_capabilities, import_openvino
from eri_runtime.executors.openvino.model import Compute, compile_options
from eri_runtime.executors.openvino.parts import OpenVinoParts
from eri_runtime.install_hint import install_hint


@dataclass(frozen=True, kw_only=True)
class OpenVinoBackend(Backend):
    """OpenVINO's CPU plugin. It runs bundles of every precision.

    With `compute="bf16"` the denoiser and the VAE of a float32 bundle are rounded to 8 bits. Text
    encoders stay float32, as they run once per prompt: in bfloat16 T5's residual stream lost a
    tenth of its size.

    Attributes:
        compute: The number format of denoiser and VAE.
        bundle: The bundle whose compiled models are kept; set by `of`. None: none are kept.
    """

    compute: Compute = "f32"
    bundle: Bundle | None = field(default=None, compare=False, repr=False)

    @property
    def computes_on_cpu(self) -> bool:
        """True."""
        return True

    def of(self, bundle: Bundle) -> OpenVinoBackend:
        """Returns this backend with the files of a bundle, by which compiled models are known."""
        return replace(self, bundle=bundle)

    def refusal(self, spec: ComponentSpec) -> str | None:
        """Returns why OpenVINO cannot run on this machine, in a few words, or None."""
        del spec
        if importlib.util.find_spec("openvino") is None:
            return f"openvino is not installed: {install_hint('openvino')}"
        if self.compute == "bf16" and "BF16" not in cpu_capabilities():
            return "this processor has no bfloat16: use --backend openvino"
        return None

    def words(self, settings: Settings = DEFAULT_SETTINGS) -> str:
        """Describes the version, the number format and the options, in one line."""
        computes = {"f32": "float32", "bf16": "bfloat16 but for text encoders"}[self.compute]
        threads = settings.threads or "all cores"
        return f"OpenVINO {version('openvino')} CPU, {computes}, threads {threads}"

    def executor(
        self,
        graph: Path,
        spec: ComponentSpec,
        settings: Settings = DEFAULT_SETTINGS,
        overrides: Arrays = FROM_FILE,
    ) -> Executor:
        """Opens a component. Raises `BackendError` if OpenVINO is missing or refuses it."""
        if reason := self.refusal(spec):
            raise BackendError(graph, got=reason, expected="a component for OpenVINO")
        kept = self._compiled_models(graph, spec) if settings.cache else None
        compute = self._compute_of(graph)
        return OpenVinoExecutor(graph, spec, compute, settings, overrides, kept)

    def is_kept(
        self, graph: Path, spec: ComponentSpec, settings: Settings, sizes: Mapping[str, int]
    ) -> bool:
        """Returns whether an earlier process kept what it compiled of a graph for these sizes."""
        kept = self._compiled_models(graph, spec) if settings.cache else None
        if kept is None or not kept.any:
            return False
        core = import_openvino().Core()
        shapes = {tensor.name: shape_of(tensor, sizes) for tensor in spec.inputs}
        return kept.holds(core, shapes, compile_options(self._compute_of(graph), settings))

    def _compute_of(self, graph: Path) -> Compute:
        """Returns the number format for a component: float32 for a text encoder."""
        return "f32" if graph.parent.name.startswith("text_encoder") else self.compute

    def _compiled_models(self, graph: Path, spec: ComponentSpec) -> CompiledModels | None:
        """Returns the compiled models of a graph of the bundle; None if it is of none."""
        if self.bundle is None or not graph.is_relative_to(self.bundle.root):
            return None
        name = graph.relative_to(self.bundle.root).as_posix()
        with suppress(OSError, KeyError):  # weights that cannot be opened, a file of no bundle
            return CompiledModels(self.bundle, name, spec)
        return None

    def runs_step_graph(self, spec: ComponentSpec) -> bool:
        """Returns False: the NumPy loop drives the denoiser."""
        del spec
        return False

    def stepper(
        self,
        graph: Path,
        spec: ComponentSpec,
        settings: Settings = DEFAULT_SETTINGS,
        overrides: Arrays = FROM_FILE,
    ) -> None:
        """Returns None; see `runs_step_graph`."""

    def part_engine(self, spec: ComponentSpec, settings: Settings) -> OpenVinoParts:
        """Returns what opens the parts of a denoiser."""
        return OpenVinoParts(spec, self.compute, settings)

    def parts(self, spec: ComponentSpec, settings: Settings) -> OpenVinoSegmentRunner:
        """Returns a runner for the segments of a component."""
        return OpenVinoSegmentRunner(spec, self.compute, settings)


OPENVINO = OpenVinoBackend()
OPENVINO_BF16 = OpenVinoBackend(compute="bf16")
