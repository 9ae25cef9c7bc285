"""Runs a component one segment at a time, so that only a part of its weights is in memory.

The bundle stores the component's graph as segments over one weights file. Every call opens, runs
and closes each segment in turn. Memory then holds the weights of the largest segment, the values
that later segments read, and the segment's activations. For 466 million float32 parameters in
eight segments, ONNX Runtime opens all of them in 0.35 s of a step of 7 s. The next segment is not
opened while one runs, because memory would hold the weights of both. OpenVINO compiles them in 3 to
4 s, about as long as it computes at 256x256.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from eri_runtime.bundle import Bundle, ComponentSpec, SegmentSpec
from eri_runtime.errors import BackendError
from eri_runtime.executors.backend import Backend
from eri_runtime.executors.base import FROM_FILE, Arrays, Executor, Settings, check_inputs
from eri_runtime.executors.openvino.backend import OpenVinoBackend
from eri_runtime.executors.ort.backend import OrtBackend

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIX = "`eri export` writes segments, and `--backend cpu` runs them"

EngineTensors = Mapping[str, Any]  # the engine's own tensors, by name


class SegmentRunner(Protocol):
    """Runs the segments of a graph on one engine, one at a time."""

    def to_tensor(self, array: NDArray[Any]) -> Any:
        """Returns an array as the engine's tensor, over the same memory."""

    def run(
        self, graph: Path, inputs: EngineTensors, outputs: Iterable[str], overrides: Arrays
    ) -> EngineTensors:
        """Opens a segment with `overrides`, runs it and closes it. Raises `BackendError`."""

    def to_array(self, tensor: Any) -> NDArray[Any]:
        """Returns a float32 tensor as an array that owns its memory."""


class PlannedSegment(NamedTuple):
    """A segment, and the values in `done` that no later segment reads."""

    graph: Path
    spec: SegmentSpec
    done: frozenset[str]


def open_segmented(
    bundle: Bundle,
    spec: ComponentSpec,
    backend: Backend,
    settings: Settings,
    overrides: Arrays = FROM_FILE,
) -> Executor:
    """Opens a component of `bundle` that keeps one segment's weights in memory at a time.

    Raises `BackendError` with a way out if the engine cannot run segments or the bundle has none.
    """
    reason = backend.refusal(spec) or backend.streaming_refusal(spec)
    if reason is not None or not isinstance(backend, OrtBackend | OpenVinoBackend):
        got = reason or f"{type(backend).__name__}, which opens no part of a graph"
        expected = "a graph in parts, and an engine that opens one at a time"
        raise BackendError(bundle.path(spec.graph), got=got, expected=expected, fix=FIX)
    graphs = [bundle.path(segment.graph) for segment in spec.segments]
    return SegmentedExecutor(graphs, spec, backend.parts(spec, settings), overrides)


class SegmentedExecutor(Executor):
    """A component run segment by segment. A segment is open only while it runs.

    Replaced weights take effect when the segments that use them are opened next.
    """

    opens_files_in_run = True

    def __init__(
        self,
        graphs: Sequence[Path],
        spec: ComponentSpec,
        runner: SegmentRunner,
        overrides: Arrays = FROM_FILE,
    ) -> None:
        """Plans the segments; opens nothing yet.

        Args:
            graphs: One ONNX file per segment of `spec`, in order.
            spec: The whole component's inputs, outputs and segments.
            runner: Opens and runs one segment on an engine.
            overrides: Tensors that replace tensors of the weights file. Default: none.
        """
        self.spec = spec
        self.name = graphs[0].parent.name
        self._segments = tuple(_plan_segments(graphs, spec))
        self._runner, self._overrides = runner, overrides

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        check_inputs(self.name, self.spec, inputs)
        overrides = self._overrides  # one set for the whole call, even if `replace` runs meanwhile
        live = {name: self._runner.to_tensor(array) for name, array in inputs.items()}
        for graph, segment, done in self._segments:
            own = {name: overrides[name] for name in segment.weights if name in overrides}
            tensors = {name: live[name] for name in segment.inputs}
            live |= self._runner.run(graph, tensors, segment.outputs, own)
            live = {name: tensor for name, tensor in live.items() if name not in done}
            del tensors  # they hold values that are done
        return {out.name: self._runner.to_array(live[out.name]) for out in self.spec.outputs}

    def replace(self, overrides: Arrays) -> None:
        self._overrides = overrides

    def close(self) -> None:
        self._overrides = FROM_FILE


def _plan_segments(graphs: Sequence[Path], spec: ComponentSpec) -> Iterator[PlannedSegment]:
    """Yields the segments in order, each with the values that can be freed after it.

    Such a value is an input or output of the segment, no later segment reads it, and it is not an
    output of the component.
    """
    last = {name: i for i, segment in enumerate(spec.segments) for name in segment.inputs}
    outputs = {output.name for output in spec.outputs}
    for i, (graph, segment) in enumerate(zip(graphs, spec.segments, strict=True)):
        used = {*segment.inputs, *segment.outputs} - outputs
        done = frozenset(name for name in used if last.get(name, i) <= i)
        yield PlannedSegment(graph, segment, done)
