"""A step graph on ONNX Runtime. Every tensor is bound once; states use a pool of buffers.

A state's buffers return to the pool when nothing references the state any more. So a loop whose
caller keeps no step needs two sets of buffers, and a step that is kept never changes. On the CPU a
step copies nothing. On CUDA it is a captured graph, see `captured_step`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from eri_runtime.bundle import ComponentSpec
from eri_runtime.errors import BackendError
from eri_runtime.executors.base import FROM_FILE, Arrays, Settings, changed_tensors
from eri_runtime.executors.ort.buffers import (
    BoundInputs,
    Buffer,
    OrtLatents,
    Slot,
    bind_step,
    new_slot,
)
from eri_runtime.executors.ort.capture_guard import device_call
from eri_runtime.executors.ort.captured_step import (
    NOT_CAPTURED,
    CapturingSession,
    Noises,
    run_options,
)
from eri_runtime.executors.ort.engine_errors import OrtErrors
from eri_runtime.executors.ort.provider import Provider, is_form
from eri_runtime.executors.ort.session import SessionSource
from eri_runtime.executors.step_form import Layout, StepForm, form_of
from eri_runtime.executors.step_graph import Array, HeldLatents, Row, StepLoop, Stepper

REFUSES_CAPTURE = "graph capture feature"  # in ONNX Runtime's error for a graph it cannot capture

log = logging.getLogger(__name__)


class OpenSession(NamedTuple):
    """A session, and its captured graphs if it captures any."""

    session: Any
    capturing: CapturingSession | None


@dataclass
class CurrentSession:
    """The session that all loops of a stepper use for their next step.

    Captured graphs are forgotten with the session that they were captured in.
    """

    opened: OpenSession


class OrtStepper(Stepper):
    """One session of a step graph. New weights open a new session, which open loops switch to."""

    def __init__(
        self,
        graph: Path,
        spec: ComponentSpec,
        provider: Provider,
        settings: Settings,
        overrides: Arrays = FROM_FILE,
    ) -> None:
        """Opens `graph`; on CUDA its steps are captured. Raises `BackendError`."""
        self._device, self._form = provider.device, form_of(spec)
        self._is_cuda_form = is_form(graph, "cuda")
        self._source = SessionSource(graph, spec, provider, settings)
        self._current: Any = CurrentSession(self._open(self._source.open, overrides))
        self._overrides = overrides

    def loop(self, shape: tuple[int, ...], width: int) -> StepLoop:
        return OrtStepLoop(self._current, self._device, self._form, shape, width)

    def replace(self, overrides: Arrays) -> None:
        if changed_tensors(self._overrides, overrides):
            opened = self._open(self._source.reopen, overrides)
            with device_call(self._device):  # frees the old session's memory, if no loop uses it
                self._current.opened, self._overrides = opened, overrides

    def close(self) -> None:
        with device_call(self._device):
            self._current, self._overrides = None, FROM_FILE
        self._source.close()

    def _open(self, opens: Callable[[Arrays], Any], overrides: Arrays) -> OpenSession:
        """Opens a session with `opens`; one that captures graphs, if it can.

        Only the CUDA form can be captured: other graphs may read host memory, which replays of a
        captured graph would read again. And ONNX Runtime may refuse to capture.
        """
        if self._is_cuda_form:
            try:
                session = self._source.open(overrides, {"enable_cuda_graph": "1"})
                return OpenSession(session, CapturingSession(session))
            except BackendError as error:
                if REFUSES_CAPTURE not in str(error):
                    raise
                log.warning("steps are not captured as CUDA graphs: %s", str(error))
        return OpenSession(opens(overrides), None)


class OrtStepLoop(StepLoop):
    """The buffers and bindings of one trajectory."""

    def __init__(
        self,
        current: CurrentSession,
        device: str,
        form: StepForm,
        shape: tuple[int, ...],
        width: int,
    ) -> None:
        self._current, self._session, self._device = current, current.opened.session, device
        self._form, self._shape, self._width = form, shape, width
        self._row = Buffer(np.zeros(form.row_shape(shape[0]), np.float32), device)
        self._noises = Noises(shape)
        self._noise = Buffer(self._noises.array, device)
        self._bound: dict[Hashable, BoundInputs] = {}
        self._bindings: dict[tuple[Hashable, int, int], Any] = {}
        self._free: list[Slot] = []
        self._slots = 0

    def bind(
        self, key: Hashable, mix: Array, conditions: Arrays, layout: Layout | None = None
    ) -> None:
        self._bound[key] = BoundInputs(self._form.bound(mix, conditions, layout), self._device)

    def begin(self, x: Array, remembered: Sequence[Array]) -> HeldLatents:
        slot = self._take_slot()
        np.copyto(slot.x.array, x)
        slot.history.array.fill(0)
        for j, memory in enumerate(remembered):
            slot.history.array[j] = memory
        for buffer in (slot.x, slot.history):
            buffer.upload()
        return self._latents(slot, len(remembered))

    def run(self, rows: Iterable[Row], state: HeldLatents) -> Iterator[HeldLatents]:
        for row in rows:
            state = self._step(row, state)
            yield state

    def _step(self, row: Row, state: HeldLatents) -> HeldLatents:
        """Runs one row into another slot."""
        opened = self._current.opened
        before, after = cast(OrtLatents, state), self._take_slot()
        if row.noises:
            self._noises.set(row.noises)
        if opened.capturing is None:
            with device_call(self._device):
                self._run_bound(opened.session, row, before.slot, after, None)
        else:
            run = partial(self._run_captured, opened.capturing, row, before.slot, after)
            opened.capturing.call(run)
        return self._latents(after, min(before.count + 1, self._width))

    def _run_captured(
        self, capturing: CapturingSession, row: Row, before: Slot, after: Slot
    ) -> None:
        """Runs one row as a CUDA graph, or without one if there are too many already."""
        inputs = self._bound[row.key]
        step = capturing.step(self._shape, self._form, inputs.arrays)
        if step is not None:
            columns = self._form.row(row.columns, self._shape[0])
            step.run(columns, self._noises, inputs, before, after)
            return
        with device_call(self._device):
            options = run_options(NOT_CAPTURED)
            self._run_bound(capturing.session, row, before, after, options)

    def _run_bound(self, session: Any, row: Row, before: Slot, after: Slot, options: Any) -> None:
        """Runs one row on the loop's own buffers."""
        if self._session is not session:
            self._session = session
            self._bindings.clear()  # they belong to the old session
        self._form.write_row(row.columns, self._shape[0], self._row.array)
        self._row.upload()
        if row.noises:
            self._noise.upload()
        with OrtErrors("step graph", "runs"):
            session.run_with_iobinding(self._binding(row.key, before, after), options)

    def _take_slot(self) -> Slot:
        """Returns a free slot, or a new one."""
        if self._free:
            return self._free.pop()
        self._slots += 1
        return new_slot(self._slots, self._shape, self._form, self._device)

    def _latents(self, slot: Slot, count: int) -> OrtLatents:
        """Wraps a slot; the slot is free again when nothing references the result."""
        return OrtLatents(slot, count, self._free)

    def _binding(self, key: Hashable, before: Slot, after: Slot) -> Any:
        """Returns the binding of a pair of slots, created on first use."""
        pair = key, before.number, after.number
        binding = self._bindings.get(pair)
        if binding is None:
            inputs = self._bound[key].buffers
            binding = self._bindings[pair] = bind_step(
                self._session, inputs, before, after, self._noise, self._row
            )
        return binding
