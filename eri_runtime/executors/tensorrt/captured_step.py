"""One step of the denoising loop in fixed buffers, captured as a CUDA graph once it has run.

A graph replays the addresses and the kernels that it was captured with. It is wrong for a context
that has changed since, and for buffers that have passed to another trajectory.
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-cuda-graphs.html
So a context is bound once, to buffers that belong to no trajectory. Each step copies a state in,
runs, and copies the result out; what loops hold is never an address in a graph.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from eri_runtime.errors import BackendError
from eri_runtime.executors.base import FROM_FILE, Arrays
from eri_runtime.executors.step_form import StepForm
from eri_runtime.executors.step_graph import Array
from eri_runtime.executors.tensorrt.cuda import Graph, Memory, Staged, view
from eri_runtime.executors.tensorrt.engine import TrtEngine
from eri_runtime.executors.tensorrt.slot import Shape, Slot, nbytes
from eri_runtime.sampling import MAX_V, MAX_W

Signature = tuple[Shape, tuple[tuple[str, Shape], ...]]

log = logging.getLogger(__name__)


def signature_of(shape: Shape, inputs: Arrays) -> Signature:
    """Returns the shapes that a captured step depends on: latents, `mix` and conditions."""
    return shape, tuple((name, values.shape) for name, values in inputs.items())


class CapturedStep:
    """A context of the step graph for fixed shapes, its buffers and its CUDA graph.

    `shape` is the shape of the latents. Every loop of these shapes uses the same object.
    """

    def __init__(
        self,
        engine: TrtEngine,
        sizes: Mapping[str, int],
        shape: Shape,
        form: StepForm,
        inputs: Arrays,
    ) -> None:
        """Allocates the buffers; `sizes` are the dynamic dimensions by name.

        `inputs` are a pass's `mix` and conditions, of which only shapes and dtypes are used.
        Raises `SizeError` if no profile fits, `BackendError` if the engine refuses.
        """
        self.shape = shape
        self._engine = engine
        self._loaded: tuple[object, Arrays] = (None, FROM_FILE)
        self._silent = False  # whether the noise on the device is zero
        self._graph: Graph | None = None
        self._warm = self._refused = False
        self._refits = engine.refits
        history = (MAX_W, *shape)
        buffers = {"x": shape, "history": history, "row": form.row_shape(shape[0])}
        buffers |= {"x_next": shape, "history_next": history, "denoised": shape}
        buffers |= {"magnitude": form.magnitude_shape(shape[0])}
        uploads = {"noise": np.zeros((MAX_V, *shape), np.float32), **inputs}
        shapes = {name: buffers[name] for name in ("x", "history", "row")}
        with engine.device.free_on_error():
            shapes |= {name: values.shape for name, values in uploads.items()}
            self._context = engine.context(sizes, shapes)
            self._memory = {
                name: engine.device.memory(nbytes(size)) for name, size in buffers.items()
            }
            self._staged = {
                name: Staged(engine.device, values.nbytes) for name, values in uploads.items()
            }
            staged = {name: each.memory for name, each in self._staged.items()}
            bound = {**self._memory, **staged}.items()
            self._context.bind({name: memory.address for name, memory in bound})

    @property
    def captured(self) -> bool:
        """Whether the next step replays a CUDA graph."""
        return self._graph is not None and self._refits == self._engine.refits

    def load(self, loop: object, inputs: Arrays) -> None:
        """Uploads a pass's `mix` and conditions, except arrays that this `loop` uploaded last."""
        owner, loaded = self._loaded
        self._loaded = (None, FROM_FILE)  # if an upload fails, the next step uploads all of them
        for name, values in inputs.items():
            if owner is not loop or loaded[name] is not values:
                self._staged[name].upload(self._engine.stream, values)
        self._loaded = (loop, inputs)

    def enqueue(self, row: Array, noises: Sequence[Array], before: Slot, after: Slot) -> None:
        """Enqueues one step from the state in `before` to the state in `after`."""
        stream, memory = self._engine.stream, self._memory
        view(after.host_row, np.float32, row.shape)[...] = row
        stream.upload(after.host_row, memory["row"], row.nbytes)
        self._load_noises(noises)
        self._copy((before.x, memory["x"]), (before.history, memory["history"]))
        self._run()
        self._copy(
            (memory["x_next"], after.x),
            (memory["history_next"], after.history),
            (memory["denoised"], after.denoised),
        )
        stream.download(memory["magnitude"], after.host_magnitude, memory["magnitude"].size)
        stream.record(after.ready)

    def release(self) -> None:
        """Frees the graph and the buffers, after all enqueued work."""
        self._engine.stream.wait()
        self._forget()
        for staged in self._staged.values():
            staged.free()
        self._engine.device.free(*self._memory.values())

    def _load_noises(self, noises: Sequence[Array]) -> None:
        """Uploads the noises of a row, (B, …) float32 each; missing ones are zero."""
        if not noises and self._silent:
            return
        values = np.zeros((MAX_V, *self.shape), np.float32)
        for j, noise in enumerate(noises):
            values[j] = noise
        self._silent = False
        self._staged["noise"].upload(self._engine.stream, values)
        self._silent = not noises

    def _copy(self, *pairs: tuple[Memory, Memory]) -> None:
        for source, target in pairs:
            self._engine.stream.copy(source, target, target.size)

    def _run(self) -> None:
        """Enqueues the engine call: directly the first time, then as a CUDA graph."""
        if self._refits != self._engine.refits:
            self._forget()
        if self._graph is None and self._warm and not self._refused:
            self._graph = self._capture()
        if self._graph is not None:
            self._engine.stream.launch(self._graph)
            return
        self._context.execute()
        self._warm = True

    def _capture(self) -> Graph | None:
        """Captures the engine call, or logs why it is not captured and returns None."""
        try:
            self._context.check_capturable()
            return self._engine.stream.capture(self._context.execute)
        except BackendError as error:
            self._refused = True
            # log the text only: a log record that keeps the error keeps its frames alive
            log.warning("the step is not captured as a CUDA graph: %s", str(error))
            return None

    def _forget(self) -> None:
        """Frees the graph; the context runs once more before it is captured again."""
        if self._graph is not None:
            self._engine.device.free(self._graph)
        self._graph, self._warm, self._refits = None, False, self._engine.refits
