"""The device memory of one state of the denoising loop, and a pool of such slots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eri_runtime.executors.step_form import StepForm
from eri_runtime.executors.step_graph import Array
from eri_runtime.executors.tensorrt.cuda import Event, Memory, view
from eri_runtime.executors.tensorrt.engine import TrtEngine
from eri_runtime.sampling import MAX_W

Shape = tuple[int, ...]

FLOAT = 4  # bytes


def nbytes(shape: Shape) -> int:
    """Returns the size of a float32 tensor in bytes."""
    return int(np.prod(shape)) * FLOAT


class Slot:
    """The buffers of one state, which no engine call writes: a step copies its results here.

    `host_magnitude` is not finite where x is not. `host_row` holds the row that led to
    the state until the device has read it. `ready` is reached when the state is computed.
    """

    def __init__(self, engine: TrtEngine, shape: Shape, form: StepForm) -> None:
        device = engine.device
        row, self._magnitude = form.row_shape(shape[0]), form.magnitude_shape(shape[0])
        size = nbytes(shape)
        with device.free_on_error():
            self.x, self.denoised = device.memory(size), device.memory(size)
            self.history = device.memory(MAX_W * size)
            self.host_magnitude = device.pinned(nbytes(self._magnitude))
            self.host_row = device.pinned(nbytes(row))
            self.ready = device.event()

    @property
    def magnitude(self) -> Array:
        """The magnitude of x, or of each image's; wait for `ready` first."""
        return view(self.host_magnitude, np.float32, self._magnitude)

    def resources(self) -> tuple[Memory | Event, ...]:
        """Everything that has to be freed."""
        pinned = self.host_magnitude, self.host_row
        return self.x, self.denoised, self.history, *pinned, self.ready


class SlotPool:
    """Slots for latents of one shape. Append a slot to `free` once nothing references its state."""

    def __init__(self, engine: TrtEngine, shape: Shape, form: StepForm) -> None:
        self.free: list[Slot] = []
        self._engine, self._shape, self._form = engine, shape, form

    def take(self) -> Slot:
        """Returns a free slot whose host memory the device no longer reads, or a new one."""
        if not self.free:
            return Slot(self._engine, self._shape, self._form)
        slot = self.free.pop()
        slot.ready.wait()
        return slot

    def fill(self, slot: Slot, x: Array, remembered: Sequence[Array]) -> None:
        """Uploads a state: x (B, …) float32 and past predictions, newest first."""
        stream = self._engine.stream
        history = np.zeros((MAX_W, *self._shape), np.float32)
        for j, memory in enumerate(remembered):
            history[j] = memory
        host = self._engine.host(history.nbytes)
        for values, target in ((x, slot.x), (history, slot.history)):
            view(host, np.float32, values.shape)[...] = values
            stream.upload(host, target, values.nbytes)
            stream.record(slot.ready)
            slot.ready.wait()

    def read(self, slot: Slot, part: str) -> Array:
        """Waits for a state and returns a copy of its `x`, `denoised` or `history`.

        Copies on a second stream, so it does not wait for work enqueued after the state.
        """
        memory: Memory = getattr(slot, part)
        host = self._engine.host(memory.size)
        slot.ready.wait()
        self._engine.reader.download(memory, host, memory.size)
        self._engine.reader.wait()
        shape = (MAX_W, *self._shape) if part == "history" else self._shape
        return view(host, np.float32, shape).copy()

    def trim(self) -> None:
        """Frees the memory of all free slots."""
        while self.free:
            self._engine.device.free(*self.free.pop().resources())
