"""A component on TensorRT: arrays in, one engine call, arrays out.

Not yet run on a GPU: the tests replace TensorRT with a stand-in.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import ComponentSpec
from eri_runtime.executors.base import FROM_FILE, Arrays, Executor, check_inputs
from eri_runtime.executors.tensorrt.cuda import Staged, view
from eri_runtime.executors.tensorrt.engine import Context, OpenPlan, TrtEngine

Key = tuple[tuple[int, ...], ...]
CONTEXTS = 4  # contexts kept, one per set of input shapes


class TrtExecutor(Executor):
    """An engine with one buffer per tensor. A buffer grows when a larger tensor comes."""

    def __init__(self, spec: ComponentSpec, plan: OpenPlan, overrides: Arrays = FROM_FILE) -> None:
        """Opens `plan`. Raises `BackendError` if that fails."""
        self.spec = spec
        self.name = PurePosixPath(spec.graph).parent.name
        self._engine = TrtEngine(plan, overrides)
        self._buffers: dict[str, Staged] = {}
        self._contexts: dict[Key, Context] = {}
        self._lock = threading.Lock()  # a context runs one call at a time

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        check_inputs(self.name, self.spec, inputs)
        with self._lock:
            self._engine.check_open()
            return self._run(inputs)

    def replace(self, overrides: Arrays) -> None:
        with self._lock:
            self._engine.replace(overrides)

    def close(self) -> None:
        with self._lock:
            self._contexts.clear()
            self._buffers.clear()
            self._engine.close()

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Uploads the inputs, executes, and downloads the outputs."""
        stream, context = self._engine.stream, self._context(inputs)
        shapes = {output.name: context.shape(output.name) for output in self.spec.outputs}
        types = {output.name: np.dtype(output.dtype) for output in self.spec.outputs}
        for name, values in inputs.items():
            self._buffer(name, values.nbytes).upload(stream, values)
        for name, shape in shapes.items():
            self._buffer(name, int(np.prod(shape)) * types[name].itemsize)
        used = {name: self._buffers[name] for name in (*inputs, *shapes)}
        context.bind({name: buffer.memory.address for name, buffer in used.items()})
        context.execute()
        for name, shape in shapes.items():
            size = int(np.prod(shape)) * types[name].itemsize
            stream.download(used[name].memory, used[name].host, size)
        stream.wait()
        return {name: view(used[name].host, types[name], shapes[name]).copy() for name in shapes}

    def _context(self, inputs: Arrays) -> Context:
        """Returns the context for the inputs' shapes, created on first use."""
        shapes = {tensor.name: inputs[tensor.name].shape for tensor in self.spec.inputs}
        key = tuple(shapes.values())
        if key not in self._contexts:
            if len(self._contexts) == CONTEXTS:
                del self._contexts[next(iter(self._contexts))]
            self._contexts[key] = self._engine.context(named_sizes(self.spec, shapes), shapes)
        return self._contexts[key]

    def _buffer(self, name: str, size: int) -> Staged:
        """Returns a tensor's buffer, replaced by a larger one if it is too small."""
        buffer = self._buffers.get(name)
        if buffer is not None and buffer.memory.size >= size:
            return buffer
        if buffer is not None:
            del self._buffers[name]
            buffer.free()
        with self._engine.device.free_on_error():
            self._buffers[name] = Staged(self._engine.device, size)
        return self._buffers[name]


def named_sizes(spec: ComponentSpec, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Returns the size of each dynamic dimension by name, from the shapes of the inputs."""
    return {
        dimension: size
        for tensor in spec.inputs
        for dimension, size in zip(tensor.shape, shapes[tensor.name], strict=True)
        if isinstance(dimension, str)
    }
