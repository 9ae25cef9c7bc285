"""A step graph on ONNX Runtime: every tensor is bound once, and states take turns.

A state's buffers are free again when nothing holds the state any more. So a loop whose steps are
let go of needs two sets and copies nothing, and a step that is kept never changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from eri_runtime.executors.base import FROM_FILE, Arrays, Settings, moved
from eri_runtime.executors.ort import OrtBackend, open_session
from eri_runtime.executors.stepper import Array, HeldLatents, Row, StepLoop, Stepper
from eri_runtime.spec import ComponentSpec
from eri_runtime.table import COLUMNS, MAX_V, MAX_W

OUTPUTS = {
    "x_next": "x",
    "history_next": "history",
    "denoised": "denoised",
    "magnitude": "magnitude",
}
NO_GRAPH = "-1"


class Buffer:
    """A tensor on the device; on the CPU it is the array itself."""

    def __init__(self, values: Array, device: str) -> None:
        import onnxruntime as ort

        self.array = np.asarray(values, order="C")  # which leaves () as it is
        self.on_host = device == "cpu"
        self.value = ort.OrtValue.ortvalue_from_numpy(self.array, device, 0)

    def upload(self) -> None:
        """Let the device have what was written into `array`."""
        if not self.on_host:
            self.value.update_inplace(self.array)

    def read(self) -> Array:
        """A copy."""
        return self.array.copy() if self.on_host else cast(Array, self.value.numpy())


class Slot(NamedTuple):
    """The buffers of one state; `number` tells it from the other slots of its loop."""

    number: int
    x: Buffer
    history: Buffer
    denoised: Buffer
    magnitude: Buffer


class OrtLatents:
    """A state in a slot whose newest `count` memories are of rows that were taken."""

    def __init__(self, slot: Slot, count: int) -> None:
        self.slot, self.count = slot, count

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
        magnitude = self.slot.magnitude
        return bool(np.isfinite(magnitude.array if magnitude.on_host else magnitude.read()))


@dataclass
class Served:
    """The session that a stepper's loops take their next step with."""

    session: Any


class OrtStepper(Stepper):
    """One session of a step graph; other weights are another, which its loops go on with."""

    def __init__(
        self,
        graph: Path,
        spec: ComponentSpec,
        backend: OrtBackend,
        settings: Settings,
        overrides: Arrays = FROM_FILE,
    ) -> None:
        """Open `graph`; a static one is captured as a CUDA graph. Raises `BackendError`."""
        static = all(sizes.min == sizes.max for sizes in spec.ranges.values())
        self._captured = backend.device == "cuda" and static
        capture = {"enable_cuda_graph": "1"} if self._captured else {}
        self._device = backend.device
        self._opened = partial(open_session, graph, spec, backend, settings, capture)
        self._served: Any = Served(self._opened(overrides))
        self._overrides = overrides

    def loop(self, shape: tuple[int, ...], width: int) -> StepLoop:
        return OrtStepLoop(self._served, self._device, shape, width, captured=self._captured)

    def replace(self, overrides: Arrays) -> None:
        if moved(self._overrides, overrides):
            self._served.session, self._overrides = self._opened(overrides), overrides

    def close(self) -> None:
        self._served, self._overrides = None, FROM_FILE


class OrtStepLoop(StepLoop):
    """The buffers and bindings of one trajectory."""

    def __init__(
        self, served: Served, device: str, shape: tuple[int, ...], width: int, *, captured: bool
    ) -> None:
        self._served, self._session, self._device = served, served.session, device
        self._shape, self._width = shape, width
        self._captured = captured
        self._row = self._buffer(np.zeros(sum(COLUMNS.values()), np.float32))
        self._noise = self._buffer(np.zeros((MAX_V, *shape), np.float32))
        self._bound: dict[Hashable, Mapping[str, Buffer]] = {}
        self._bindings: dict[tuple[Hashable, int, int], tuple[Any, Any]] = {}
        self._free: list[Slot] = []
        self._slots = 0

    def bind(self, key: Hashable, mix: Array, conditions: Arrays) -> None:
        self._bound[key] = {
            name: self._buffer(values) for name, values in {"mix": mix, **conditions}.items()
        }

    def begin(self, x: Array, remembered: Sequence[Array]) -> HeldLatents:
        slot = self._slot()
        np.copyto(slot.x.array, x)
        slot.history.array.fill(0)
        for j, memory in enumerate(remembered):
            slot.history.array[j] = memory
        for buffer in (slot.x, slot.history):
            buffer.upload()
        return self._held(slot, len(remembered))

    def run(self, rows: Iterable[Row], state: HeldLatents) -> Iterator[HeldLatents]:
        for row in rows:
            state = self._step(row, state)
            yield state

    def _step(self, row: Row, state: HeldLatents) -> HeldLatents:
        if self._session is not self._served.session:
            self._session = self._served.session
            self._bindings.clear()  # they are of a session
        before, after = cast(OrtLatents, state), self._slot()
        np.copyto(self._row.array, row.columns)
        self._row.upload()
        if row.noises:
            for j, noise in enumerate(row.noises):
                self._noise.array[j] = noise
            self._noise.upload()
        binding, options = self._binding(row.key, before.slot, after)
        self._session.run_with_iobinding(binding, options)
        return self._held(after, min(before.count + 1, self._width))

    def _buffer(self, values: Array) -> Buffer:
        return Buffer(values, self._device)

    def _slot(self) -> Slot:
        """A free one, or a new one."""
        if self._free:
            return self._free.pop()
        shape, self._slots = self._shape, self._slots + 1
        shapes = (shape, (MAX_W, *shape), shape, ())
        return Slot(self._slots, *(self._buffer(np.zeros(each, np.float32)) for each in shapes))

    def _held(self, slot: Slot, count: int) -> OrtLatents:
        latents = OrtLatents(slot, count)
        weakref.finalize(latents, self._free.append, slot).atexit = False
        return latents

    def _binding(self, key: Hashable, before: Slot, after: Slot) -> tuple[Any, Any]:
        """The binding of two slots and its run options, made once."""
        pair = key, before.number, after.number
        if pair not in self._bindings:
            self._bindings[pair] = self._bind(key, before, after), self._options()
        return self._bindings[pair]

    def _bind(self, key: Hashable, before: Slot, after: Slot) -> Any:
        binding = self._session.io_binding()
        inputs = {"x": before.x, "history": before.history, "noise": self._noise, "row": self._row}
        for name, buffer in {**inputs, **self._bound[key]}.items():
            binding.bind_ortvalue_input(name, buffer.value)
        for name, part in OUTPUTS.items():
            binding.bind_ortvalue_output(name, getattr(after, part).value)
        return binding

    def _options(self) -> Any:
        """A captured graph holds addresses: each of the first bindings has its own, later none."""
        import onnxruntime as ort

        options = ort.RunOptions()
        if self._captured:
            number = len(self._bindings)
            options.add_run_config_entry("gpu_graph_id", str(number) if number < 8 else NO_GRAPH)
        return options
