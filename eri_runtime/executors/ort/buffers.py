"""Tensors on ONNX Runtime's device, and the state of a step graph's loop that lies in them."""

from __future__ import annotations

from functools import cached_property
from math import isfinite
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from eri_runtime.executors.base import Arrays
from eri_runtime.executors.ort.capture_guard import device_call
from eri_runtime.executors.step_form import StepForm
from eri_runtime.executors.step_graph import OUTPUTS, Array, which_finite
from eri_runtime.sampling import MAX_W


class Buffer:
    """A tensor on the device, and its array on the host. On the CPU both share memory."""

    def __init__(self, values: NDArray[Any], device: str) -> None:
        import onnxruntime as ort

        self.array = np.asarray(values, order="C")  # `ascontiguousarray` would change shape ()
        self.device = device
        self.on_host = device == "cpu"
        with device_call(device):
            self.value = ort.OrtValue.ortvalue_from_numpy(self.array, device, 0)

    def upload(self) -> None:
        """Copies `array` to the device, after it was written to."""
        if not self.on_host:
            self.write(self.array)

    def write(self, values: NDArray[Any]) -> None:
        """Copies `values` to the device and leaves `array` as it is. Not for the CPU."""
        with device_call(self.device):
            self.value.update_inplace(values)

    def copy(self, source: Buffer) -> None:
        """Copies another buffer of the device, which must be of the same shape. Not for the CPU."""
        with device_call(self.device):
            self.value.update_inplace(source.value)

    def read(self) -> Array:
        """Returns a copy of the tensor."""
        if self.on_host:
            return self.array.copy()
        with device_call(self.device):
            return cast(Array, self.value.numpy())


class Slot(NamedTuple):
    """The buffers of one state. `number` identifies the slot among those of its owner."""

    number: int
    x: Buffer
    history: Buffer
    denoised: Buffer
    magnitude: Buffer


def new_slot(number: int, x: tuple[int, ...], form: StepForm, device: str) -> Slot:
    """Allocates the buffers of a state with latents of shape `x`, all zero."""
    shapes = (x, (MAX_W, *x), x, form.magnitude_shape(x[0]))
    return Slot(number, *(Buffer(np.zeros(shape, np.float32), device) for shape in shapes))


class OrtLatents:
    """A state in a slot. The first `count` predictions of its history are valid.

    The slot returns to `free` when nothing references the state any more.
    """

    def __init__(self, slot: Slot, count: int, free: list[Slot]) -> None:
        self.slot, self.count, self._free = slot, count, free

    def __del__(self) -> None:
        self._free.append(self.slot)

    @cached_property
    def x(self) -> Array:
        return self.slot.x.read()

    @cached_property
    def denoised(self) -> Array:
        return self.slot.denoised.read()

    @cached_property
    def remembered(self) -> tuple[Array, ...]:
        return tuple(self.slot.history.read()[: self.count])

    @property
    def finite(self) -> bool:
        return all(map(isfinite, self._magnitude().reshape(-1).tolist()))

    @property
    def finite_images(self) -> NDArray[np.bool_]:
        return which_finite(self._magnitude(), self, len(self.slot.x.array))

    def _magnitude(self) -> Array:
        """Returns the sum of |x|: of all images, or of each."""
        buffer = self.slot.magnitude
        return buffer.array if buffer.on_host else buffer.read()


class BoundInputs:
    """The mix and the conditions of one pass: arrays on the host, and buffers when needed.

    Attributes:
        arrays: The arrays by input name. They do not change.
        version: An object that only these arrays have.
    """

    def __init__(self, arrays: Arrays, device: str) -> None:
        self.arrays, self._device = arrays, device
        self.version = object()

    @cached_property
    def buffers(self) -> dict[str, Buffer]:
        return {name: Buffer(values, self._device) for name, values in self.arrays.items()}


def bind_step(
    session: Any, inputs: dict[str, Buffer], before: Slot, after: Slot, noise: Buffer, row: Buffer
) -> Any:
    """Returns a binding of every input and output of a step graph."""
    binding = session.io_binding()
    fixed = {"x": before.x, "history": before.history, "noise": noise, "row": row}
    for name, buffer in {**fixed, **inputs}.items():
        binding.bind_ortvalue_input(name, buffer.value)
    for name, field in OUTPUTS.items():
        binding.bind_ortvalue_output(name, getattr(after, field).value)
    return binding
