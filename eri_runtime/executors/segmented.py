"""A component whose weights are in memory a part at a time.

The bundle has its graph in parts over one weights file. In every call each part is opened, run and
closed in turn, so memory holds the weights of the largest part, the values that cross to later
parts, and what a part computes. Of 466 million float32 parameters in eight parts, ONNX Runtime
opens all in 0.35 s of a step of 7 s; the next is not opened meanwhile, as memory would hold the
weights of two. OpenVINO compiles them in 3 to 4 s, about as long as it computes at 256x256.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from eri_runtime.errors import BackendError
from eri_runtime.executors.base import (
    FROM_FILE,
    Arrays,
    Backend,
    Executor,
    Settings,
    check_inputs,
)
from eri_runtime.executors.openvino import OpenVinoBackend
from eri_runtime.executors.ort import OrtBackend
from eri_runtime.spec import Bundle, ComponentSpec, SegmentSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIX = "`eri export` writes segments, and `--backend cpu` runs them"

Values = Mapping[str, Any]  # the engine's own tensors by name


class Parts(Protocol):
    """What runs a graph's parts, one at a time."""

    def given(self, array: NDArray) -> Any:
        """An array as the engine's tensor, over the same memory."""

    def run(self, graph: Path, inputs: Values, outputs: Iterable[str], overrides: Arrays) -> Values:
        """Open a part with `overrides`, run it, close it; raises `BackendError`."""

    def array(self, value: Any) -> NDArray:
        """A float32 tensor as an array of its own."""


class Part(NamedTuple):
    """A segment, and the values that nothing needs once it has run."""

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
    """Open a component of `bundle` whose weights are in memory a part at a time.

    Raises `BackendError`, which names the way out, for an engine that cannot run it so, and for a
    bundle whose graph is not in parts.
    """
    reason = backend.refusal(spec) or backend.unstreamed(spec)
    if reason is not None or not isinstance(backend, OrtBackend | OpenVinoBackend):
        got = reason or f"{type(backend).__name__}, which opens no part of a graph"
        expected = "a graph in parts, and an engine that opens one at a time"
        raise BackendError(bundle.path(spec.graph), got=got, expected=expected, fix=FIX)
    graphs = [bundle.path(segment.graph) for segment in spec.segments]
    return SegmentedExecutor(graphs, spec, backend.parts(spec, settings), overrides)


class SegmentedExecutor(Executor):
    """The segments of a component, of which one is open at a time, and only within a call.

    Other weights are given to the segments that have them when these are opened next.
    """

    def __init__(
        self,
        graphs: Sequence[Path],
        spec: ComponentSpec,
        parts: Parts,
        overrides: Arrays = FROM_FILE,
    ) -> None:
        self.spec = spec
        self.name = graphs[0].parent.name
        self._segments = tuple(_segments(graphs, spec))
        self._parts, self._overrides = parts, overrides

    def run(self, inputs: Arrays) -> dict[str, NDArray]:
        check_inputs(self.name, self.spec, inputs)
        overrides = self._overrides  # those of the whole call, whatever is set meanwhile
        live = {name: self._parts.given(array) for name, array in inputs.items()}
        for graph, segment, done in self._segments:
            own = {name: overrides[name] for name in segment.weights if name in overrides}
            given = {name: live[name] for name in segment.inputs}
            live |= self._parts.run(graph, given, segment.outputs, own)
            live = {name: value for name, value in live.items() if name not in done}
            del given
        return {output.name: self._parts.array(live[output.name]) for output in self.spec.outputs}

    def replace(self, overrides: Arrays) -> None:
        self._overrides = overrides

    def close(self) -> None:
        self._overrides = FROM_FILE


def _segments(graphs: Sequence[Path], spec: ComponentSpec) -> Iterator[Part]:
    """The segments in order; what is done after each was read or made there, and is no output."""
    last = {name: i for i, each in enumerate(spec.segments) for name in each.inputs}
    outputs = {output.name for output in spec.outputs}
    for i, (graph, segment) in enumerate(zip(graphs, spec.segments, strict=True)):
        here = {*segment.inputs, *segment.outputs} - outputs
        done = frozenset(name for name in here if last.get(name, i) <= i)
        yield Part(graph, segment, done)
