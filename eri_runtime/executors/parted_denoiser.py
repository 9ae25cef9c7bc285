"""The denoiser open in three parts, so that a step may skip the middle one: step caching.

The parts are those of `ComponentSpec.step_cache`: the first block, the other blocks and the last
layers. They read one weights file, and what they pass to each other stays in the engine's tensors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import CACHED_HIDDEN, CACHED_REST, RESIDUAL, ComponentSpec
from eri_runtime.executors.base import FROM_FILE, Arrays, Refittable, changed_tensors, check_inputs

Float32 = NDArray[np.float32]
EngineTensors = Mapping[str, Any]
# (inputs, names of the outputs) -> outputs
OpenPart = Callable[[EngineTensors, Sequence[str]], EngineTensors]

NO_PARTS = "a bundle whose denoiser is not cut at its first block"


class FirstBlock(Protocol):
    """A call of the denoiser after its first block.

    Attributes:
        residual: What the first block added, (rows, …) float32.
        hidden: Its output, (rows, …) float32, if the other blocks add to it; else None.
    """

    residual: Float32
    hidden: Float32 | None

    def rest(self) -> Float32:
        """Runs the other blocks; returns what the last layers read of them, (rows, …) float32."""


# first blocks of all calls of a step -> what the last layers read in each of them
Choose = Callable[[Sequence[FirstBlock]], Sequence[Float32]]


class PartedDenoiser(Refittable):
    """An open denoiser in three parts, which owns the engine's resources."""

    @abstractmethod
    def run(self, calls: Sequence[Arrays], choose: Choose) -> list[Float32]:
        """Runs a step: the first block of every call, what `choose` runs, and the last layers.

        Args:
            calls: The denoiser's inputs by name, for each call that the step's rows take.
            choose: Returns what the last layers read in each call: the result of
                `FirstBlock.rest`, or one like it.

        Returns:
            The denoiser's `output` of each call.
        """


class PartEngine(Protocol):
    """Opens the parts of a graph on one engine."""

    def to_tensor(self, array: NDArray[Any]) -> Any:
        """Returns an array as the engine's tensor."""

    def to_array(self, tensor: Any) -> NDArray[Any]:
        """Returns a float32 tensor as an array that owns its memory."""

    def open(self, graph: Path, overrides: Arrays) -> OpenPart:
        """Opens a part with `overrides`; it may be called by several threads.

        Raises `BackendError`.
        """


class EngineParts(PartedDenoiser):
    """The three parts open on one engine."""

    def __init__(
        self,
        graphs: Sequence[Path],
        spec: ComponentSpec,
        engine: PartEngine,
        overrides: Arrays = FROM_FILE,
    ) -> None:
        """Opens the parts, one graph for each of `spec.step_cache`. Raises `BackendError`."""
        self._graphs, self._spec, self._engine = tuple(graphs), spec, engine
        self._overrides = [self._of_part(index, overrides) for index in range(len(graphs))]
        self._parts = [
            engine.open(*each) for each in zip(self._graphs, self._overrides, strict=True)
        ]

    def run(self, calls: Sequence[Arrays], choose: Choose) -> list[Float32]:
        parts = tuple(self._parts)
        blocks = [_Call(self._spec, self._engine, parts, inputs) for inputs in calls]
        chosen = choose(blocks)
        return [block.last(rest) for block, rest in zip(blocks, chosen, strict=True)]

    def replace(self, overrides: Arrays) -> None:
        parts, kept = list(self._parts), list(self._overrides)
        for index, before in enumerate(kept):
            kept[index] = self._of_part(index, overrides)
            if changed_tensors(before, kept[index]):
                parts[index] = self._engine.open(self._graphs[index], kept[index])
        self._parts, self._overrides = parts, kept

    def close(self) -> None:
        self._parts, self._overrides = [], []

    def _of_part(self, index: int, overrides: Arrays) -> dict[str, NDArray[Any]]:
        """Returns the overrides of the weights that one part reads."""
        weights = self._spec.step_cache[index].weights
        return {name: overrides[name] for name in weights if name in overrides}


class _Call:
    """A `FirstBlock` on an engine."""

    def __init__(
        self, spec: ComponentSpec, engine: PartEngine, parts: Sequence[OpenPart], inputs: Arrays
    ) -> None:
        """Runs the first block. Raises `SizeError` if an input does not fit."""
        check_inputs("denoiser", spec, inputs)
        self._segments, self._engine, self._parts = spec.step_cache, engine, parts
        self._live = {name: engine.to_tensor(array) for name, array in inputs.items()}
        self._live |= self._run(0)
        self.residual: Float32 = engine.to_array(self._live.pop(RESIDUAL))
        hidden = self._live.pop(CACHED_HIDDEN, None)
        self.hidden: Float32 | None = None if hidden is None else engine.to_array(hidden)

    def rest(self) -> Float32:
        """Runs the other blocks."""
        return self._engine.to_array(self._run(1)[CACHED_REST])

    def last(self, rest: Float32) -> Float32:
        """Runs the last layers."""
        self._live[CACHED_REST] = self._engine.to_tensor(rest)
        return self._engine.to_array(self._run(2)["output"])

    def _run(self, index: int) -> EngineTensors:
        segment = self._segments[index]
        inputs = {name: self._live[name] for name in segment.inputs}
        return self._parts[index](inputs, segment.outputs)
