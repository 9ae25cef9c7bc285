"""A step graph on TensorRT: buffers are bound once, and a step moves pointers only.

Not yet run on a GPU: the tests put a stand-in in the place of TensorRT.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import cast

import numpy as np

from eri_runtime.executors.base import FROM_FILE, Arrays
from eri_runtime.executors.stepper import Array, HeldLatents, Row, StepLoop, Stepper
from eri_runtime.executors.trt_buffers import (
    Kind,
    Shape,
    Slot,
    Whole,
    Workspace,
    signature_of,
)
from eri_runtime.executors.trt_engine import OpenPlan, TrtEngine
from eri_runtime.executors.trt_executor import named_sizes
from eri_runtime.spec import ComponentSpec

IDLE = 2  # workspaces that are kept for the next trajectory
SAMPLE, TIMESTEP = "sample", "timestep"  # what a step graph makes of x and its row


class TrtLatents:
    """A state in a slot, whose newest `count` memories are of rows that were taken."""

    def __init__(self, loop: TrtStepLoop, slot: Slot, count: int) -> None:
        self.loop, self.slot, self.count = loop, slot, count

    @cached_property
    def x(self) -> Array:
        return self.loop.read(self.slot, "x")

    @cached_property
    def denoised(self) -> Array:
        return self.loop.read(self.slot, "denoised")

    @cached_property
    def remembered(self) -> tuple[Array, ...]:
        return tuple(self.loop.read(self.slot, "history")[: self.count])

    @property
    def finite(self) -> bool:
        return self.loop.finite(self.slot)


class TrtStepper(Stepper):
    """An engine of a step graph, and the workspaces that its loops take turns with."""

    def __init__(self, spec: ComponentSpec, plan: OpenPlan, overrides: Arrays = FROM_FILE) -> None:
        """Open `plan`; raises `BackendError` where that fails."""
        self.engine = TrtEngine(plan, overrides)
        self.lock = threading.RLock()  # one loop at a time enqueues, as it may be captured
        self.idle: list[Workspace] = []
        self._spec = spec

    def obstacle(self, images: int, conditions: Iterable[int]) -> str | None:
        plan = self.engine.plan.spec
        for count in conditions:
            if not any(
                images in profile.get("images", (images,))
                and count in profile.get("conditions", (count,))
                for profile in plan.profiles
            ):
                return f"{count} conditions of {images} images, which no profile of the plan holds"
        return None

    def loop(self, shape: tuple[int, ...], width: int) -> StepLoop:
        return TrtStepLoop(self, shape, width)

    def workspace(self, shape: Shape, passes: Sequence[Arrays]) -> Workspace:
        """One that no loop uses, kept or new, with these mixes and conditions in it."""
        self.engine.check_open()
        signature = signature_of(shape, passes)
        for kept in self.idle:
            if kept.signature == signature:
                self.idle.remove(kept)
                kept.fill(passes)
                return kept
        while len(self.idle) >= IDLE:
            self.idle.pop(0).release()
        sized = [(self._sizes(shape, inputs), inputs) for inputs in passes]
        made = Workspace(self.engine, shape, sized)
        made.fill(passes)
        return made

    def replace(self, overrides: Arrays) -> None:
        """As everywhere; loops are captured anew, and steps that were enqueued keep the old."""
        with self.lock:
            self.engine.replace(overrides)

    def close(self) -> None:
        with self.lock:
            self.idle.clear()
            self.engine.close()

    def _sizes(self, shape: Shape, inputs: Arrays) -> dict[str, int]:
        """The dynamic dimensions of the step graph by name, for choosing a profile."""
        conditions, images = inputs["mix"].shape
        rows = conditions * images
        shapes = {name: values.shape for name, values in inputs.items()}
        shapes |= {SAMPLE: (rows, *shape[1:]), TIMESTEP: (rows,)}
        sizes = {"conditions": conditions, "images": images}
        return sizes | named_sizes(self._spec, shapes)


class TrtStepLoop(StepLoop):
    """One trajectory in a workspace, which is free again when its last latents are let go of."""

    def __init__(self, stepper: TrtStepper, shape: Shape, width: int) -> None:
        self._stepper, self._shape, self._width = stepper, shape, width
        self._inputs: dict[Hashable, Arrays] = {}
        self._numbers: dict[Hashable, int] = {}

    def bind(self, key: Hashable, mix: Array, conditions: Arrays) -> None:
        self._inputs[key] = {"mix": mix, **conditions}

    def begin(self, x: Array, remembered: Sequence[Array]) -> HeldLatents:
        # the same order for every trajectory, so that the next one finds the workspace
        shapes = {key: signature_of(x.shape, [each]) for key, each in self._inputs.items()}
        keys = sorted(self._inputs, key=lambda key: repr(shapes[key]))
        self._numbers = {key: number for number, key in enumerate(keys)}
        with self._stepper.lock:
            passes = [self._inputs[key] for key in keys]
            self._workspace = self._stepper.workspace(self._shape, passes)
            idle = self._stepper.idle
            weakref.finalize(self, idle.append, self._workspace).atexit = False
            return self._held(self._workspace.begin(x, remembered), len(remembered))

    def run(self, rows: Iterable[Row], state: HeldLatents) -> Iterator[HeldLatents]:
        rows, begun = list(rows), cast(TrtLatents, state)
        if not rows:
            return
        del state  # its slot is free once the first row is taken
        kinds = tuple(Kind(self._numbers[row.key], bool(row.noises)) for row in rows)
        with self._stepper.lock:
            self._stepper.engine.check_open()
            self._workspace.load_rows(np.stack([row.columns for row in rows]))
            whole = self._workspace.whole(kinds)
            if whole is not None:
                self._launch(whole, rows, begun)
        if whole is not None:
            for k, slot in enumerate(whole.slots[1:], start=1):
                yield TrtLatents(self, slot, min(begun.count + k, self._width))
            return
        for k, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
            begun = self._step(k, row, kind, begun)
            yield begun

    def read(self, slot: Slot, part: str) -> Array:
        """A copy of a part of a state, once it is there."""
        with self._stepper.lock:
            self._stepper.engine.check_open()
            return self._workspace.read(slot, part)

    def finite(self, slot: Slot) -> bool:
        """Whether all of x is."""
        with self._stepper.lock:
            self._stepper.engine.check_open()
            slot.settled()
            return bool(np.isfinite(slot.sum))

    def _launch(self, whole: Whole, rows: Sequence[Row], begun: TrtLatents) -> None:
        """All rows at once."""
        for k, noise in whole.noises.items():
            self._workspace.load_noise(noise, rows[k].noises)
        whole.launch(begun.slot)

    def _step(self, k: int, row: Row, kind: Kind, before: TrtLatents) -> TrtLatents:
        """One row."""
        with self._stepper.lock:
            self._stepper.engine.check_open()
            workspace = self._workspace
            after = workspace.slot()
            if row.noises:
                workspace.load_noise(workspace.noise, row.noises)
            workspace.enqueue(kind.bound, k, workspace.noise, before.slot, after)
            self._stepper.engine.stream.record(after.there)
            return self._held(after, min(before.count + 1, self._width))

    def _held(self, slot: Slot, count: int) -> TrtLatents:
        latents = TrtLatents(self, slot, count)
        weakref.finalize(latents, self._workspace.free.append, slot).atexit = False
        return latents
