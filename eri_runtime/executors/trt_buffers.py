"""What the loops of a step graph on TensorRT keep on the device, made once and used again.

A `Workspace` serves every trajectory of its shapes. The first takes its rows one by one; when the
same rows come again they are captured as one CUDA graph, and later ones only launch that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from eri_runtime.errors import BackendError
from eri_runtime.executors.base import Arrays
from eri_runtime.executors.cuda import Event, Memory, Staged, view
from eri_runtime.executors.stepper import Array
from eri_runtime.executors.trt_engine import Context, TrtEngine
from eri_runtime.table import COLUMNS, MAX_V, MAX_W

OUTPUTS = {
    "x_next": "x",
    "history_next": "history",
    "denoised": "denoised",
    "magnitude": "magnitude",
}
FLOAT = 4  # bytes
WIDTH = sum(COLUMNS.values())
STRIDE = 256  # bytes from one row to the next: TensorRT's alignment of a tensor
ROWS = 64  # that there is room for before it must grow
PENDING = -1.0  # a magnitude that has not come: a sum of sizes is never negative
PAUSE = 20e-6  # seconds between two looks at it
MOST = 1 << 30  # bytes of a trajectory's states: a longer one is not captured

Shape = tuple[int, ...]
Signature = tuple[Shape, tuple[tuple[tuple[str, Shape], ...], ...]]


log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """What a row is executed with: the number of its pass, and whether it has noise."""

    bound: int
    noisy: bool


Rows = tuple[Kind, ...]


def signature_of(shape: Shape, passes: Iterable[Arrays]) -> Signature:
    """What the buffers of a trajectory depend on."""
    return shape, tuple(
        tuple((name, each.shape) for name, each in inputs.items()) for inputs in passes
    )


class Slot:
    """The memory of one state; `settled` waits until it is there."""

    def __init__(self, engine: TrtEngine, shape: Shape) -> None:
        device = engine.device
        size = int(np.prod(shape)) * FLOAT
        with device.all_or_nothing():
            self.x, self.denoised = device.memory(size), device.memory(size)
            self.history = device.memory(MAX_W * size)
            self.magnitude, self.norm = device.memory(FLOAT), device.pinned(FLOAT)
            self.there = device.event()
        self.settled: Callable[[], None] = self.there.wait

    @property
    def sum(self) -> float:
        """The host's copy of the magnitude."""
        return float(view(self.norm, np.float32, ())[()])

    def arm(self) -> None:
        """Let the host see when the magnitude comes."""
        view(self.norm, np.float32, ())[...] = PENDING

    def resources(self) -> tuple[Memory | Event, ...]:
        """All of it."""
        return self.x, self.denoised, self.history, self.magnitude, self.norm, self.there


class Bound:
    """A context, and the mix and conditions that it is executed with."""

    def __init__(
        self, engine: TrtEngine, sizes: Mapping[str, int], x: Shape, inputs: Arrays
    ) -> None:
        shapes = {
            "x": x,
            "history": (MAX_W, *x),
            "noise": (MAX_V, *x),
            "row": (WIDTH,),
            **{name: values.shape for name, values in inputs.items()},
        }
        self.context: Context = engine.context(sizes, shapes)
        self.staged = {
            name: Staged(engine.device, values.nbytes) for name, values in inputs.items()
        }
        self.context.point({name: each.memory.address for name, each in self.staged.items()})


class Workspace:
    """The buffers of one trajectory at a time, of latents and conditions of fixed shapes."""

    def __init__(
        self,
        engine: TrtEngine,
        shape: Shape,
        passes: Sequence[tuple[Mapping[str, int], Arrays]],
    ) -> None:
        """Raises `SizeError` where no profile holds the shapes of `passes`."""
        self.engine, self.shape = engine, shape
        self.size = int(np.prod(shape)) * FLOAT
        self.signature = signature_of(shape, [inputs for _, inputs in passes])
        self.free: list[Slot] = []
        self._slots: list[Slot] = []
        self._seen: set[Rows] = set()
        self._refits = engine.refits
        self._wholes: dict[Rows, Whole | None] = {}  # None for what cannot be captured
        with engine.device.all_or_nothing():
            self.bound = [Bound(engine, sizes, shape, inputs) for sizes, inputs in passes]
            self.noise = self.staged_noise()
            self._rows = Staged(engine.device, ROWS * STRIDE)
            self._host = engine.device.pinned(MAX_W * self.size)

    def fill(self, passes: Sequence[Arrays]) -> None:
        """Put the mixes and conditions of a trajectory on the device, and no noise."""
        stream = self.engine.stream
        for bound, inputs in zip(self.bound, passes, strict=True):
            for name, values in inputs.items():
                bound.staged[name].upload(stream, values)
        self.load_noise(self.noise, ())
        if self._refits != self.engine.refits:
            self.forget()

    def slot(self) -> Slot:
        """A free one, or a new one."""
        if self.free:
            return self.free.pop()
        self._slots.append(Slot(self.engine, self.shape))
        return self._slots[-1]

    def staged_noise(self) -> Staged:
        """A buffer for the noises of a row."""
        return Staged(self.engine.device, MAX_V * self.size)

    def load_noise(self, staged: Staged, noises: Sequence[Array]) -> None:
        """Put the noises of a row there, and zeros for those that it has not."""
        values = np.zeros((MAX_V, *self.shape), np.float32)
        for j, noise in enumerate(noises):
            values[j] = noise
        staged.upload(self.engine.stream, values)

    def load_rows(self, table: Array) -> None:
        """Put the (K, 13) rows of a trajectory on the device."""
        size = len(table) * STRIDE
        if self._rows.memory.size < size:
            self.forget()  # as graphs hold the address
            self._rows.free()
            self._rows = Staged(self.engine.device, size)
        padded = np.zeros((len(table), STRIDE // FLOAT), np.float32)
        padded[:, :WIDTH] = table
        self._rows.upload(self.engine.stream, padded)

    def begin(self, x: Array, remembered: Sequence[Array]) -> Slot:
        """A slot of this state."""
        slot, stream = self.slot(), self.engine.stream
        history = np.zeros((MAX_W, *self.shape), np.float32)
        for j, memory in enumerate(remembered):
            history[j] = memory
        for values, part in ((x, slot.x), (history, slot.history)):
            view(self._host, np.float32, values.shape)[...] = values
            stream.upload(self._host, part, values.nbytes)
            stream.record(slot.there)
            slot.there.wait()
        return slot

    def enqueue(self, bound: int, k: int, noise: Staged, before: Slot, after: Slot) -> None:
        """One engine call: row k, with nothing but pointers moved."""
        context = self.bound[bound].context
        outputs = {name: getattr(after, part).address for name, part in OUTPUTS.items()}
        context.point(
            {
                "x": before.x.address,
                "history": before.history.address,
                "noise": noise.memory.address,
                "row": self._rows.memory.address + k * STRIDE,
                **outputs,
            }
        )
        context.execute()
        self.engine.stream.download(after.magnitude, after.norm, FLOAT)

    def whole(self, rows: Rows) -> Whole | None:
        """Their graph: None the first time, as an engine may be captured once it has run."""
        if rows in self._wholes:
            return self._wholes[rows]
        if rows not in self._seen or self._bytes(rows) > MOST:
            self._seen.add(rows)
            return None
        try:
            self._wholes[rows] = Whole(self, rows)
        except BackendError as error:
            # its text only: a record that keeps the error would keep the loop
            log.warning("the loop is not captured as a CUDA graph: %s", str(error))
            self._wholes[rows] = None
        return self._wholes[rows]

    def read(self, slot: Slot, part: str) -> Array:
        """A copy, by a stream of its own: what is enqueued after the state is not waited for."""
        memory: Memory = getattr(slot, part)
        slot.settled()
        self.engine.reader.download(memory, self._host, memory.size)
        self.engine.reader.wait()
        shape = (MAX_W, *self.shape) if part == "history" else self.shape
        return view(self._host, np.float32, shape).copy()

    def forget(self) -> None:
        """Let go of the captured graphs, and let all rows run once before they are captured."""
        for whole in filter(None, self._wholes.values()):
            whole.release()
        self._wholes.clear()
        self._seen.clear()
        self._refits = self.engine.refits

    def release(self) -> None:
        """Free all of it."""
        self.engine.stream.wait()
        self.forget()
        staged = [each for bound in self.bound for each in bound.staged.values()]
        for each in (*staged, self.noise, self._rows):
            each.free()
        for slot in self._slots:
            self.engine.device.free(*slot.resources())
        self.engine.device.free(self._host)

    def _bytes(self, rows: Rows) -> int:
        """What a graph of them takes, beside the engine's own."""
        noisy = sum(each.noisy for each in rows)
        return self.size * ((len(rows) + 1) * (MAX_W + 2) + noisy * MAX_V)


class Whole:
    """All rows of a trajectory as one CUDA graph, with a slot for the state after each.

    A graph's own events tell the host nothing, so it watches each row's magnitude arrive.
    """

    def __init__(self, workspace: Workspace, rows: Rows) -> None:
        """Capture `rows`; raises `BackendError` where the engine allows that not."""
        self._workspace, self._rows = workspace, rows
        engine = workspace.engine
        with engine.device.all_or_nothing():
            self.slots = [Slot(engine, workspace.shape) for _ in range(len(rows) + 1)]
            self.noises = {k: workspace.staged_noise() for k, each in enumerate(rows) if each.noisy}
            self._done = engine.device.event()
            self._graph = engine.stream.capture(self._enqueue)
        for slot in self.slots[1:]:
            slot.settled = partial(self._arrived, slot)

    def launch(self, first: Slot) -> None:
        """Enqueue all rows, from the state of `first`."""
        stream, size = self._workspace.engine.stream, self._workspace.size
        self._done.wait()  # an earlier launch that was not followed to its end
        for slot in self.slots[1:]:
            slot.arm()
        stream.copy(first.x, self.slots[0].x, size)
        stream.copy(first.history, self.slots[0].history, MAX_W * size)
        stream.launch(self._graph)
        stream.record(self._done)

    def release(self) -> None:
        """Free all of it."""
        device = self._workspace.engine.device
        for noise in self.noises.values():
            noise.free()
        for slot in self.slots:
            device.free(*slot.resources())
        device.free(self._graph, self._done)

    def _enqueue(self) -> None:
        for k, row in enumerate(self._rows):
            noise = self.noises.get(k, self._workspace.noise)
            self._workspace.enqueue(row.bound, k, noise, *self.slots[k : k + 2])

    def _arrived(self, slot: Slot) -> None:
        while slot.sum == PENDING:
            if self._done.reached() and slot.sum == PENDING:
                got = "a CUDA graph that ended without a result"
                raise BackendError("TensorRT", got=got, expected="all rows")
            time.sleep(PAUSE)
