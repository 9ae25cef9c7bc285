"""CUDA's runtime through cuda-bindings: every call is checked, and a `Device` frees its resources.

Not yet run on a GPU: the tests replace the bindings with a stand-in.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import BackendError
from eri_runtime.executors.base import Closeable

FIXES = {
    "cudaErrorMemoryAllocation": "take a smaller size or batch, or free the GPU's memory",
    "cudaErrorInsufficientDriver": "install a newer NVIDIA driver",
    "cudaErrorNoDevice": "run on a machine with an NVIDIA GPU",
}
NOT_READY = "cudaErrorNotReady"
SUCCESS = "cudaSuccess"


@dataclass(frozen=True, eq=False)
class Memory:
    """A block of device memory, or of host memory for `Pinned`; `size` is in bytes."""

    address: int
    size: int


@dataclass(frozen=True, eq=False)
class Pinned(Memory):
    """Pinned host memory, which the device copies asynchronously; `array` views its bytes."""

    array: NDArray[np.uint8]


def bindings() -> Any:
    """Imports CUDA's runtime. Raises `BackendError` if cuda-bindings is missing."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except Exception as error:  # a half-installed library raises whatever its loader raises
        raise BackendError(
            "CUDA",
            got=f"{type(error).__name__}: {error}",
            expected="its Python bindings",
            fix="pip install cuda-bindings",
        ) from error


class Device(Closeable):
    """The first GPU and everything allocated on it. `close` frees that in reverse order."""

    def __init__(self) -> None:
        """Selects the GPU. Raises `BackendError` if there are no bindings, no driver or no GPU."""
        self.api = bindings()
        self._owned: dict[tuple[str, int], Any] = {}
        self.call("cudaSetDevice", 0)

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls CUDA's runtime and returns the result. Raises `BackendError` with CUDA's code."""
        error, *results = getattr(self.api, name)(*arguments)
        if error.name != SUCCESS:
            got, fix = f"{error.name} ({int(error)})", FIXES.get(error.name)
            raise BackendError(f"CUDA: {name}", got=got, expected=SUCCESS, fix=fix)
        return results[0] if results else None

    def stream(self) -> Stream:
        """Creates a stream that does not synchronize with the default stream."""
        flags = self.api.cudaStreamNonBlocking
        return Stream(self, self._create("cudaStreamDestroy", "cudaStreamCreateWithFlags", flags))

    def event(self) -> Event:
        """Creates an event without timing."""
        flags = self.api.cudaEventDisableTiming
        return Event(self, self._create("cudaEventDestroy", "cudaEventCreateWithFlags", flags))

    def memory(self, size: int) -> Memory:
        """Allocates at least `size` bytes on the device, aligned to 256."""
        size = max(size, 1)
        return Memory(int(self._create("cudaFree", "cudaMalloc", size)), size)

    def pinned(self, size: int) -> Pinned:
        """Allocates at least `size` bytes of pinned host memory."""
        size = max(size, 1)
        address = int(self._create("cudaFreeHost", "cudaMallocHost", size))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return Pinned(address, size, array)

    def own(self, destroy: str, handle: Any) -> Any:
        """Registers `handle` to be freed by the call `destroy`, and returns it."""
        self._owned[destroy, int(handle)] = handle
        return handle

    @contextmanager
    def free_on_error(self) -> Iterator[None]:
        """Frees everything allocated in the block if the block raises."""
        before = set(self._owned)
        try:
            yield
        except BaseException:
            for resource in reversed([key for key in self._owned if key not in before]):
                self._destroy(*resource)
            raise

    def free(self, *resources: Memory | Event | Graph) -> None:
        """Frees resources now. Does nothing for those already freed."""
        for resource in resources:
            self._destroy(*_destroyer(resource))

    def close(self) -> None:
        for destroy, handle in reversed(list(self._owned)):
            self._destroy(destroy, handle)

    def _create(self, destroy: str, create: str, *arguments: Any) -> Any:
        return self.own(destroy, self.call(create, *arguments))

    def _destroy(self, destroy: str, number: int) -> None:
        handle = self._owned.pop((destroy, number), None)
        if handle is not None:
            with suppress(BackendError):  # reports the error of an earlier call, already raised
                self.call(destroy, handle)


class Event:
    """A point in a stream that the host can wait for."""

    def __init__(self, device: Device, handle: Any) -> None:
        self.device, self.handle = device, handle

    def wait(self) -> None:
        """Waits for all work before the last record. Returns at once if never recorded."""
        self.device.call("cudaEventSynchronize", self.handle)

    def reached(self) -> bool:
        """Returns whether all work before the last record is done. Raises `BackendError`."""
        (error,) = self.device.api.cudaEventQuery(self.handle)
        if error.name == NOT_READY:
            return False
        if error.name != SUCCESS:
            got = f"{error.name} ({int(error)})"
            raise BackendError("CUDA: cudaEventQuery", got=got, expected=SUCCESS)
        return True


@dataclass(frozen=True, eq=False)
class Graph:
    """A CUDA graph: captured work of a stream that can be launched again."""

    handle: Any


class Stream:
    """A CUDA stream: the device does its work in the order it was enqueued."""

    def __init__(self, device: Device, handle: Any) -> None:
        self.device, self.handle = device, handle

    def upload(self, source: Pinned, to: Memory, size: int) -> None:
        """Enqueues a copy from the host; do not change `source` before it is done."""
        self._copy(to, source, size, "cudaMemcpyHostToDevice")

    def download(self, source: Memory, to: Pinned, size: int) -> None:
        """Enqueues a copy to the host."""
        self._copy(to, source, size, "cudaMemcpyDeviceToHost")

    def copy(self, source: Memory, to: Memory, size: int) -> None:
        """Enqueues a copy on the device."""
        self._copy(to, source, size, "cudaMemcpyDeviceToDevice")

    def record(self, event: Event) -> None:
        """Records `event` after all work enqueued so far."""
        self.device.call("cudaEventRecord", event.handle, self.handle)

    def wait(self) -> None:
        """Waits for all enqueued work."""
        self.device.call("cudaStreamSynchronize", self.handle)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Captures what `enqueue` enqueues on this stream as a graph, without running it."""
        device = self.device
        with self._capturing() as captured:
            enqueue()
        (graph,) = captured
        try:
            executable = device.call("cudaGraphInstantiate", graph, 0)
            device.own("cudaGraphExecDestroy", executable)
        finally:
            device.call("cudaGraphDestroy", graph)
        return Graph(executable)

    def launch(self, graph: Graph) -> None:
        """Enqueues a whole graph."""
        self.device.call("cudaGraphLaunch", graph.handle, self.handle)

    @contextmanager
    def _capturing(self) -> Iterator[list[Any]]:
        """Captures the block; the list holds the graph afterwards. Always ends the capture."""
        device, captured = self.device, list[Any]()
        mode = device.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        device.call("cudaStreamBeginCapture", self.handle, mode)
        try:
            yield captured
        except BaseException:
            with suppress(BackendError):  # the stream repeats the error of the block
                device.call("cudaGraphDestroy", device.call("cudaStreamEndCapture", self.handle))
            raise
        captured.append(device.call("cudaStreamEndCapture", self.handle))

    def _copy(self, to: Memory, source: Memory, size: int, kind: str) -> None:
        kinds = self.device.api.cudaMemcpyKind
        arguments = to.address, source.address, size, getattr(kinds, kind), self.handle
        self.device.call("cudaMemcpyAsync", *arguments)


class Staged:
    """A device buffer and its pinned host buffer of the same size."""

    def __init__(self, device: Device, size: int) -> None:
        self.memory, self.host = device.memory(size), device.pinned(size)
        self._uploaded = device.event()
        self._device = device

    def upload(self, stream: Stream, values: NDArray[Any]) -> None:
        """Enqueues the copy of an array, which must not be larger than the buffer."""
        self._uploaded.wait()  # the device may still read the host buffer
        view(self.host, values.dtype, values.shape)[...] = values
        stream.upload(self.host, self.memory, values.nbytes)
        stream.record(self._uploaded)

    def free(self) -> None:
        """Frees both buffers."""
        self._device.free(self.memory, self.host, self._uploaded)


def view(pinned: Pinned, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Returns the first bytes of pinned memory as an array."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    array: NDArray[Any] = pinned.array[:size].view(dtype).reshape(shape)
    return array


def _destroyer(resource: Memory | Event | Graph) -> tuple[str, int]:
    """Returns the call that frees a resource, and the resource's address or handle."""
    if isinstance(resource, Pinned):
        return "cudaFreeHost", resource.address
    if isinstance(resource, Memory):
        return "cudaFree", resource.address
    name = "cudaEventDestroy" if isinstance(resource, Event) else "cudaGraphExecDestroy"
    return name, int(resource.handle)
