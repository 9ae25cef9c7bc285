"""CUDA's runtime through cuda-bindings: each call checked, each resource freed with its `Device`.

Not yet run on a GPU: the tests put a stand-in in the place of the bindings.
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
    """Bytes on the device."""

    address: int
    size: int


@dataclass(frozen=True, eq=False)
class Pinned(Memory):
    """Bytes on the host that the device copies by itself; `array` is their view."""

    array: NDArray[np.uint8]


def bindings() -> Any:
    """The module of CUDA's runtime; raises `BackendError` where cuda-bindings is missing."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except Exception as error:  # a half-installed library raises what its loader raises
        raise BackendError(
            "CUDA",
            got=f"{type(error).__name__}: {error}",
            expected="its Python bindings",
            fix="pip install cuda-bindings",
        ) from error


class Device(Closeable):
    """The first GPU, and all that was made on it; closing frees that, the last first."""

    def __init__(self) -> None:
        """Raises `BackendError` where there are no bindings, no driver or no GPU."""
        self.api = bindings()
        self._owned: dict[tuple[str, int], Any] = {}
        self.call("cudaSetDevice", 0)

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of a call of CUDA's runtime, or `BackendError` that names it and its code."""
        error, *results = getattr(self.api, name)(*arguments)
        if error.name != SUCCESS:
            got, fix = f"{error.name} ({int(error)})", FIXES.get(error.name)
            raise BackendError(f"CUDA: {name}", got=got, expected=SUCCESS, fix=fix)
        return results[0] if results else None

    def stream(self) -> Stream:
        """A stream of its own, which the default stream does not hold up."""
        flags = self.api.cudaStreamNonBlocking
        return Stream(self, self._made("cudaStreamDestroy", "cudaStreamCreateWithFlags", flags))

    def event(self) -> Event:
        """An event that keeps no time."""
        flags = self.api.cudaEventDisableTiming
        return Event(self, self._made("cudaEventDestroy", "cudaEventCreateWithFlags", flags))

    def memory(self, size: int) -> Memory:
        """At least `size` bytes on the device, aligned to 256."""
        size = max(size, 1)
        return Memory(int(self._made("cudaFree", "cudaMalloc", size)), size)

    def pinned(self, size: int) -> Pinned:
        """At least `size` bytes on the host."""
        size = max(size, 1)
        address = int(self._made("cudaFreeHost", "cudaMallocHost", size))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return Pinned(address, size, array)

    def own(self, destroy: str, handle: Any) -> Any:
        """Have `handle` freed by the call `destroy`."""
        self._owned[destroy, int(handle)] = handle
        return handle

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """What was made in the block is freed again if the block fails."""
        before = set(self._owned)
        try:
            yield
        except BaseException:
            for each in reversed([each for each in self._owned if each not in before]):
                self._destroy(*each)
            raise

    def free(self, *resources: Memory | Event | Graph) -> None:
        """Free these now; what is freed already stays so."""
        for each in resources:
            self._destroy(*_destroyer(each))

    def close(self) -> None:
        for destroy, handle in reversed(list(self._owned)):
            self._destroy(destroy, handle)

    def _made(self, destroy: str, create: str, *arguments: Any) -> Any:
        return self.own(destroy, self.call(create, *arguments))

    def _destroy(self, destroy: str, number: int) -> None:
        handle = self._owned.pop((destroy, number), None)
        if handle is not None:
            with suppress(BackendError):  # that of an earlier call, which was raised there
                self.call(destroy, handle)


class Event:
    """A point of a stream that the host can wait for."""

    def __init__(self, device: Device, handle: Any) -> None:
        self.device, self.handle = device, handle

    def wait(self) -> None:
        """Until all before its last record is done; at once where it was never recorded."""
        self.device.call("cudaEventSynchronize", self.handle)

    def reached(self) -> bool:
        """Whether all before its last record is done."""
        (error,) = self.device.api.cudaEventQuery(self.handle)
        if error.name == NOT_READY:
            return False
        if error.name != SUCCESS:
            got = f"{error.name} ({int(error)})"
            raise BackendError("CUDA: cudaEventQuery", got=got, expected=SUCCESS)
        return True


@dataclass(frozen=True, eq=False)
class Graph:
    """Work of a stream that was captured, to be launched again."""

    handle: Any


class Stream:
    """Work that the device does in this order."""

    def __init__(self, device: Device, handle: Any) -> None:
        self.device, self.handle = device, handle

    def upload(self, source: Pinned, to: Memory, size: int) -> None:
        """Copy from the host; `source` stays as it is until that is done."""
        self._copy(to, source, size, "cudaMemcpyHostToDevice")

    def download(self, source: Memory, to: Pinned, size: int) -> None:
        """Copy to the host."""
        self._copy(to, source, size, "cudaMemcpyDeviceToHost")

    def copy(self, source: Memory, to: Memory, size: int) -> None:
        """Copy on the device."""
        self._copy(to, source, size, "cudaMemcpyDeviceToDevice")

    def record(self, event: Event) -> None:
        """Let `event` stand for all that was enqueued until now."""
        self.device.call("cudaEventRecord", event.handle, self.handle)

    def wait(self) -> None:
        """Until all that was enqueued is done."""
        self.device.call("cudaStreamSynchronize", self.handle)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """What `enqueue` enqueues here, as a graph; none of it runs."""
        device = self.device
        with self._capturing() as captured:
            enqueue()
        (graph,) = captured
        try:
            made = device.call("cudaGraphInstantiate", graph, 0)
            device.own("cudaGraphExecDestroy", made)
        finally:
            device.call("cudaGraphDestroy", graph)
        return Graph(made)

    def launch(self, graph: Graph) -> None:
        """Enqueue a whole graph."""
        self.device.call("cudaGraphLaunch", graph.handle, self.handle)

    @contextmanager
    def _capturing(self) -> Iterator[list[Any]]:
        """The captured graph, once the block is left; a capture is ended whatever comes."""
        device, captured = self.device, list[Any]()
        mode = device.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        device.call("cudaStreamBeginCapture", self.handle, mode)
        try:
            yield captured
        except BaseException:
            with suppress(BackendError):  # the stream says again what went wrong in the block
                device.call("cudaGraphDestroy", device.call("cudaStreamEndCapture", self.handle))
            raise
        captured.append(device.call("cudaStreamEndCapture", self.handle))

    def _copy(self, to: Memory, source: Memory, size: int, kind: str) -> None:
        kinds = self.device.api.cudaMemcpyKind
        arguments = to.address, source.address, size, getattr(kinds, kind), self.handle
        self.device.call("cudaMemcpyAsync", *arguments)


class Staged:
    """Memory on the device with its twin on the host, both made once."""

    def __init__(self, device: Device, size: int) -> None:
        self.memory, self.host = device.memory(size), device.pinned(size)
        self._sent = device.event()
        self._device = device

    def upload(self, stream: Stream, values: NDArray) -> None:
        """Enqueue the copy of an array no larger than this."""
        self._sent.wait()  # the host's twin is read until then
        view(self.host, values.dtype, values.shape)[...] = values
        stream.upload(self.host, self.memory, values.nbytes)
        stream.record(self._sent)

    def free(self) -> None:
        """Free both."""
        self._device.free(self.memory, self.host, self._sent)


def view(pinned: Pinned, dtype: Any, shape: tuple[int, ...]) -> NDArray:
    """The first bytes as an array."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return pinned.array[:size].view(dtype).reshape(shape)


def _destroyer(resource: Memory | Event | Graph) -> tuple[str, int]:
    if isinstance(resource, Pinned):
        return "cudaFreeHost", resource.address
    if isinstance(resource, Memory):
        return "cudaFree", resource.address
    name = "cudaEventDestroy" if isinstance(resource, Event) else "cudaGraphExecDestroy"
    return name, int(resource.handle)
