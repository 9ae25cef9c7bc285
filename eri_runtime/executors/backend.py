"""`Backend`: one engine on one kind of device, before any component is open."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path

from eri_runtime.bundle import Bundle, ComponentSpec
from eri_runtime.errors import BackendError
from eri_runtime.executors.base import DEFAULT_SETTINGS, FROM_FILE, Arrays, Executor, Settings
from eri_runtime.executors.parted_denoiser import (
    NO_PARTS,
    EngineParts,
    PartedDenoiser,
    PartEngine,
)
from eri_runtime.executors.step_graph import Stepper


class Backend(ABC):
    """An engine on one kind of device. It opens components and step graphs.

    Attributes:
        can_map_weights: Whether `Settings.low_memory` leaves the weights in their files.
        streams_in_segments: Whether `Settings.streamed` runs a graph's segments one at a time.
            False for an engine that streams weights by itself.
    """

    can_map_weights = False
    streams_in_segments = True

    @property
    def computes_on_cpu(self) -> bool:
        """Whether the threads of the CPU compute."""
        return False

    def streaming_refusal(self, spec: ComponentSpec) -> str | None:
        """Returns why this component's weights cannot be streamed, in a few words, or None."""
        return None if spec.segments else "a bundle without segments: export it again"

    def of(self, bundle: Bundle) -> Backend:
        """Returns this backend bound to `bundle`, for engines that need files the bundle names.

        Args:
            bundle: The bundle whose components will be opened.

        Returns:
            This backend itself, unless the engine runs files of the bundle such as TensorRT plans.
        """
        del bundle
        return self

    def graph_file(self, graph: str, files: Collection[str]) -> str | None:
        """Returns the file that is opened for a graph, by its name in the bundle.

        Args:
            graph: The graph's name in the bundle.
            files: The names of all files of the bundle.

        Returns:
            The name, or None if the engine opens no graph but a plan, whose hash it checks.
        """
        del files
        return graph

    @abstractmethod
    def refusal(self, spec: ComponentSpec) -> str | None:
        """Returns why this component cannot run on this machine, in a few words, or None."""

    @abstractmethod
    def words(self, settings: Settings) -> str:
        """Describes the engine and the options it is opened with, in one line."""

    @abstractmethod
    def executor(
        self, graph: Path, spec: ComponentSpec, settings: Settings, overrides: Arrays = FROM_FILE
    ) -> Executor:
        """Opens a component.

        Args:
            graph: The component's ONNX file.
            spec: The component's inputs, outputs and dimension ranges.
            settings: Options for the engine.
            overrides: Tensors that replace tensors of the weights file, as in
                `Refittable.replace`. Default: none.

        Returns:
            The open component. Close it when done.

        Raises:
            BackendError: If the engine is missing or refuses the graph.
        """

    def step_cache_refusal(self, spec: ComponentSpec) -> str | None:
        """Returns why steps of this denoiser cannot be cached, in a few words, or None."""
        return None if spec.step_cache else NO_PARTS

    def parted(
        self,
        graphs: Sequence[Path],
        spec: ComponentSpec,
        settings: Settings = DEFAULT_SETTINGS,
        overrides: Arrays = FROM_FILE,
    ) -> PartedDenoiser:
        """Opens the denoiser in parts, if `step_cache_refusal` returns None.

        Args:
            graphs: The ONNX files of `spec.step_cache`.
            spec: The denoiser.
            settings: Options for the engine.
            overrides: Tensors that replace tensors of the weights file. Default: none.

        Raises:
            BackendError: If the engine is missing, refuses a graph or opens no parts.
        """
        engine = self.part_engine(spec, settings)
        if engine is None:
            got = self.step_cache_refusal(spec) or f"{type(self).__name__}, which opens no parts"
            raise BackendError(graphs[0], got=got, expected="an engine that opens parts of a graph")
        return EngineParts(graphs, spec, engine, overrides)

    def part_engine(self, spec: ComponentSpec, settings: Settings) -> PartEngine | None:
        """Returns what opens the parts of a denoiser, or None if this engine opens none."""
        del spec, settings
        return None

    def runs_step_graph(self, spec: ComponentSpec) -> bool:
        """Returns whether `stepper` would open a step graph, without opening any file."""
        return spec.step is not None

    @abstractmethod
    def stepper(
        self, graph: Path, spec: ComponentSpec, settings: Settings, overrides: Arrays = FROM_FILE
    ) -> Stepper | None:
        """Opens a step graph.

        Args:
            graph: The step graph's ONNX file.
            spec: The denoiser the step graph is built around.
            settings: Options for the engine.
            overrides: Tensors that replace tensors of the denoiser's weights file. Default: none.

        Returns:
            The open step graph, or None if this engine does not run step graphs.

        Raises:
            BackendError: If the engine is missing or refuses the graph.
        """
