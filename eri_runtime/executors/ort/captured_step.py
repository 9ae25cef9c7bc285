"""A step graph's session on CUDA, and the CUDA graphs captured in it.

A captured graph replays the addresses it was captured with, whatever is bound later. So each graph
has buffers of its own, which are fixed: a step copies its state in, replays, and copies the results
out. The buffers belong to the session and hold no state from one step to the next, so every loop of
the same shapes uses the same graph, one after the other or in turns.

ONNX Runtime keeps graphs per thread of a session, frees none of them before the session, and lets
all of them use the same memory for intermediate tensors. So a session's steps run in a thread of
their own, one at a time, and `MAX_GRAPHS` of them are captured.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from eri_runtime.executors.base import Arrays
from eri_runtime.executors.ort.buffers import BoundInputs, Buffer, Slot, bind_step, new_slot
from eri_runtime.executors.ort.capture_guard import CAPTURES
from eri_runtime.executors.step_form import StepForm
from eri_runtime.executors.step_graph import OUTPUTS, Array
from eri_runtime.sampling import MAX_V

MAX_GRAPHS = 16  # CUDA graphs per session; more shapes run without capture
NOT_CAPTURED = "-1"  # ONNX Runtime's graph id of a run that is neither captured nor replayed

Shape = tuple[int, ...]
Signature = tuple[Shape, tuple[tuple[str, Shape, str], ...]]
T = TypeVar("T")


def signature_of(shape: Shape, inputs: Arrays) -> Signature:
    """Returns what a graph's buffers depend on: the latents' shape, and each input's and dtype."""
    return shape, tuple(
        (name, values.shape, str(values.dtype)) for name, values in sorted(inputs.items())
    )


class Noises:
    """The noises of a loop, on the host. `version` changes whenever they do."""

    def __init__(self, shape: Shape) -> None:
        self.array = np.zeros((MAX_V, *shape), np.float32)
        self.version = object()

    def set(self, noises: Sequence[Array]) -> None:
        """Copies the noises of a row, (B, …) each, newest first."""
        for j, noise in enumerate(noises):
            self.array[j] = noise
        self.version = object()


class CapturedStep:
    """One CUDA graph and the buffers that it reads and writes. Holds no loop's state."""

    def __init__(
        self, session: Any, number: int, shape: Shape, form: StepForm, inputs: Arrays
    ) -> None:
        """Allocates the buffers. `number` is the graph's id, which no other graph has had."""
        self._session = session
        self._before, self._after = (new_slot(0, shape, form, "cuda") for _ in range(2))
        self._row = Buffer(np.zeros(form.row_shape(shape[0]), np.float32), "cuda")
        self._noise = Buffer(np.zeros((MAX_V, *shape), np.float32), "cuda")
        self._inputs = {
            name: Buffer(np.zeros_like(values), "cuda") for name, values in inputs.items()
        }
        self._binding = bind_step(
            session, self._inputs, self._before, self._after, self._noise, self._row
        )
        self._replayed, self._plain = run_options(str(number)), run_options(NOT_CAPTURED)
        self._is_captured = False
        self._loaded: tuple[object, object] = None, None

    def run(
        self, columns: Array, noises: Noises, inputs: BoundInputs, before: Slot, after: Slot
    ) -> None:
        """Runs a row of a loop: reads its state in `before`, and writes the next into `after`."""
        self._row.write(np.asarray(columns, order="C"))
        self._load(noises, inputs)
        for part in ("x", "history"):
            getattr(self._before, part).copy(getattr(before, part))
        self._launch()
        for part in OUTPUTS.values():
            getattr(after, part).copy(getattr(self._after, part))

    def _load(self, noises: Noises, inputs: BoundInputs) -> None:
        """Uploads noises, mix and conditions, unless they are those of the step before."""
        before, self._loaded = self._loaded, (None, None)  # in case an upload fails
        if before[0] is not noises.version:
            self._noise.write(noises.array)
        if before[1] is not inputs.version:
            for name, values in inputs.arrays.items():
                self._inputs[name].write(np.asarray(values, order="C"))
        self._loaded = noises.version, inputs.version

    def _launch(self) -> None:
        """Replays the graph. The first call runs it twice and captures it, if it can be alone."""
        if self._is_captured:
            with CAPTURES.call():
                self._session.run_with_iobinding(self._binding, self._replayed)
            return
        with CAPTURES.try_capture() as alone:
            options = self._replayed if alone else self._plain
            self._session.run_with_iobinding(self._binding, options)
            self._is_captured = alone


class CapturingSession:
    """A session of a step graph that captures CUDA graphs, and the thread that its steps run in."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self._steps: dict[Signature, CapturedStep] = {}
        self._numbers = itertools.count(1)  # 0 is ONNX Runtime's own
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="eri-cuda-graphs")

    def call(self, function: Callable[[], T]) -> T:
        """Calls a function in the session's thread, after those of other threads."""
        return self._thread.submit(function).result()

    def step(self, shape: Shape, form: StepForm, inputs: Arrays) -> CapturedStep | None:
        """Returns the graph of these shapes, or None if there are `MAX_GRAPHS` others.

        `form` is that of the session's step graph. Call it in the session's thread.
        """
        signature = signature_of(shape, inputs)
        if signature not in self._steps and len(self._steps) < MAX_GRAPHS:
            number = next(self._numbers)
            self._steps[signature] = CapturedStep(self.session, number, shape, form, inputs)
        return self._steps.get(signature)


def run_options(graph_id: str) -> Any:
    """Returns the options of a run that captures or replays the graph of this id."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph_id)
    return options
