"""A step graph on TensorRT. Every loop of the same shapes runs in the same fixed buffers.

Not yet run on a GPU: the tests replace TensorRT with a stand-in.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import ComponentSpec
from eri_runtime.executors.base import FROM_FILE, Arrays
from eri_runtime.executors.step_form import OWNER, Layout, form_of
from eri_runtime.executors.step_graph import (
    Array,
    HeldLatents,
    Row,
    StepLoop,
    Stepper,
    which_finite,
)
from eri_runtime.executors.tensorrt.captured_step import CapturedStep, Signature, signature_of
from eri_runtime.executors.tensorrt.engine import OpenPlan, TrtEngine
from eri_runtime.executors.tensorrt.executor import named_sizes
from eri_runtime.executors.tensorrt.slot import Shape, Slot, SlotPool

KEPT = 4  # captured steps kept: two sizes, with and without guidance
SAMPLE, TIMESTEP = "sample", "timestep"  # denoiser inputs that a step graph computes itself


class TrtLatents:
    """A state in a slot. The first `count` predictions of its history are valid."""

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
        return bool(np.isfinite(self.loop.magnitude(self.slot)).all())

    @property
    def finite_images(self) -> NDArray[np.bool_]:
        return which_finite(self.loop.magnitude(self.slot), self, self.loop.images)


class TrtStepper(Stepper):
    """The engine of a step graph, and the buffers of its loops.

    One thread enqueues at a time: a step is several calls on one stream, through shared buffers.
    """

    def __init__(self, spec: ComponentSpec, plan: OpenPlan, overrides: Arrays = FROM_FILE) -> None:
        """Opens `plan`. Raises `BackendError` if that fails."""
        self.engine = TrtEngine(plan, overrides)
        self.lock = threading.RLock()
        self.steps: dict[Signature, CapturedStep] = {}  # the last used one at the end
        self._pools: dict[Shape, SlotPool] = {}
        self._spec, self.form = spec, form_of(spec)

    def refusal(self, images: int, conditions: Iterable[int]) -> str | None:
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

    def pool(self, shape: Shape) -> SlotPool:
        """Returns the slots for latents of this shape."""
        with self.lock:
            return self._pools.setdefault(shape, SlotPool(self.engine, shape, self.form))

    def step(self, shape: Shape, inputs: Arrays) -> CapturedStep:
        """Returns the captured step for these shapes, kept or new."""
        signature = signature_of(shape, inputs)
        step = self.steps.pop(signature, None)
        if step is None:
            self._make_room()
            step = CapturedStep(self.engine, self._sizes(shape, inputs), shape, self.form, inputs)
        self.steps[signature] = step
        return step

    def replace(self, overrides: Arrays) -> None:
        """Replaces weights. Steps already enqueued keep the old ones; graphs are captured anew."""
        with self.lock:
            self.engine.replace(overrides)

    def close(self) -> None:
        with self.lock:
            self.steps.clear()
            self._pools.clear()
            self.engine.close()

    def _make_room(self) -> None:
        """Frees the steps that were not used for longest, and the free slots of their shapes."""
        self.engine.stream.wait()  # what is enqueued may still read or write them
        while len(self.steps) >= KEPT:
            self.steps.pop(next(iter(self.steps))).release()
        shapes = {step.shape for step in self.steps.values()}
        for shape, pool in self._pools.items():
            if shape not in shapes:
                pool.trim()

    def _sizes(self, shape: Shape, inputs: Arrays) -> dict[str, int]:
        """Returns the step graph's dynamic dimensions by name, to choose a profile with."""
        conditions, images = inputs["mix"].shape
        rows = len(inputs[OWNER]) if OWNER in inputs else conditions * images
        shapes = {name: values.shape for name, values in inputs.items()}
        shapes |= {SAMPLE: (rows, *shape[1:]), TIMESTEP: (rows,)}
        sizes = {"conditions": conditions, "images": images}
        return sizes | named_sizes(self._spec, shapes)


class TrtStepLoop(StepLoop):
    """One trajectory: its conditions, and the slots of its states."""

    def __init__(self, stepper: TrtStepper, shape: Shape, width: int) -> None:
        self._stepper, self._shape, self._width = stepper, shape, width
        self._inputs: dict[Hashable, Arrays] = {}
        self._identity = object()  # tells this loop's uploads from another's, and keeps no loop
        self._pool = stepper.pool(shape)

    def bind(
        self, key: Hashable, mix: Array, conditions: Arrays, layout: Layout | None = None
    ) -> None:
        self._inputs[key] = self._stepper.form.bound(mix, conditions, layout)

    @property
    def images(self) -> int:
        """The number of images."""
        return self._shape[0]

    def begin(self, x: Array, remembered: Sequence[Array]) -> HeldLatents:
        with self._stepper.lock:
            self._stepper.engine.check_open()
            latents = self._latents(len(remembered))
            self._pool.fill(latents.slot, x, remembered)
            return latents

    def run(self, rows: Iterable[Row], state: HeldLatents) -> Iterator[HeldLatents]:
        for row in rows:
            state = self._step(row, cast(TrtLatents, state))
            yield state

    def read(self, slot: Slot, part: str) -> Array:
        """Waits for a state and returns a copy of one of its arrays."""
        with self._stepper.lock:
            self._stepper.engine.check_open()
            return self._pool.read(slot, part)

    def magnitude(self, slot: Slot) -> Array:
        """Waits for a state and returns a copy of its magnitude."""
        with self._stepper.lock:
            self._stepper.engine.check_open()
            slot.ready.wait()
            return slot.magnitude.copy()

    def _step(self, row: Row, before: TrtLatents) -> TrtLatents:
        """Enqueues one row into another slot."""
        with self._stepper.lock:
            self._stepper.engine.check_open()
            inputs = self._inputs[row.key]
            step = self._stepper.step(self._shape, inputs)
            after = self._latents(min(before.count + 1, self._width))
            step.load(self._identity, inputs)
            columns = self._stepper.form.row(row.columns, self.images)
            step.enqueue(columns, row.noises, before.slot, after.slot)
            return after

    def _latents(self, count: int) -> TrtLatents:
        """Takes a slot, which is free again when the result is garbage collected."""
        latents = TrtLatents(self, self._pool.take(), count)
        weakref.finalize(latents, self._pool.free.append, latents.slot).atexit = False
        return latents
