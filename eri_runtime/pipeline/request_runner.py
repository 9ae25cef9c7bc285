"""Runs one request in one memory mode: first latents, loop and noise; no retries, no caches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import DENOISER, Bundle, ShapeRange
from eri_runtime.errors import UsageError
from eri_runtime.latents import latent_shape, run_in_chunks, vae
from eri_runtime.loop import (
    Array,
    FirstBlockCache,
    GuidancePlan,
    GuidedTrajectory,
    Inputs,
    LoopChoice,
    Step,
    Trajectory,
    check_start,
    denoise_on_step_graph,
    denoiser_passes,
    identity,
    step_together,
)
from eri_runtime.memory import Guard, Mode, is_exhausted, out_of_memory_error, sizes_of
from eri_runtime.pipeline.prompt_conditions import encode_conditions
from eri_runtime.request import (
    Edit,
    Request,
    add_noise,
    first_noise,
    keep_outside_mask,
    noise_scale,
    request_schedule,
    request_table,
    scheduler_scale,
)
from eri_runtime.sampling import (
    BrownianNoise,
    NoiseSource,
    PhiloxNoise,
    SamplerTable,
    TorchNoise,
    check_noise,
    noise_intervals,
)
from eri_runtime.text import Encode
from eri_runtime.weights import LiveWeights, LoraInputs, WeightOverlays


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """What the loop of a request runs on: table, noise, conditions and first latents."""

    table: SamplerTable
    noise: NoiseSource
    plan: GuidancePlan
    shared: Inputs
    x: Array
    mend: Callable[[Array, int], Array]

    def trajectory(self, request: Request, start: Step | None = None) -> GuidedTrajectory:
        """Returns the request's trajectory, from its first latents or after `start`."""
        trajectory = Trajectory(
            self.table,
            start or self.x,
            self.noise,
            hook=request.hook,
            mend=self.mend,
            draw=request.first_draw,
        )
        return GuidedTrajectory(trajectory, self.plan, self.shared)


class RequestRunner:
    """Runs requests on the open components of one pipeline."""

    def __init__(
        self,
        bundle: Bundle,
        live: LiveWeights,
        weights: WeightOverlays,
        loops: LoopChoice,
        guard: Guard,
    ) -> None:
        self._bundle, self._live, self._weights, self._loop_choice = bundle, live, weights, loops
        self._lora_inputs, self._guard = LoraInputs(bundle.components[DENOISER]), guard

    def run(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Runs one component on NumPy arrays.

        Raises `OutOfMemoryError`, naming the component, if memory runs out or would run out.
        """
        with self._live.generating(), self._live.using(name):
            return self._run_held(name, inputs)

    def _run_held(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Runs a component that the caller is `using` while it is `generating`; see `run`."""
        self._guard.check_inputs(name, inputs, self._bundle.components[name].inputs)
        try:
            return self._live.executor(name).run(inputs)
        except Exception as error:
            if is_exhausted(error):
                raise out_of_memory_error(name, error) from error
            raise

    def steps(
        self, encode: Encode, request: Request, start: Step | None, mode: Mode
    ) -> Iterator[Step]:
        """Returns the steps of a request, or those after `start`.

        Encodes the prompts and validates everything before the first step.
        """
        begun = self._begun(encode, request, mode)
        table, plan, shared, x = begun.table, begun.plan, begun.shared, begun.x
        if start is not None:
            check_start(start, table, x.shape)
        changed = request.hook is not identity or begun.mend is not identity
        rows = self._rows(mode)

        def run_loop() -> Generator[Step]:
            with self._live.using(DENOISER):
                self._guard.check(DENOISER, self._input_sizes(plan, shared, rows, table, x))
                cached = request.step_cache is not None
                stepper = self._loop_choice.choose(
                    plan, table, request.batch, rows, changed=changed, cached=cached
                )
                if stepper is not None:
                    yield from denoise_on_step_graph(
                        stepper,
                        plan,
                        shared,
                        rows,
                        table,
                        start or x,
                        begun.noise,
                        draw=request.first_draw,
                    )
                    return
                trajectory = begun.trajectory(request, start)
                if request.step_cache is not None and request.step_cache.threshold > 0:
                    yield from self._cached(trajectory, request, rows, mode)
                    return
                while not trajectory.done:
                    predictions = self._run_denoiser(rows, shared, trajectory.ask())
                    yield trajectory.tell(predictions)

        return self._undisturbed(run_loop())

    def _cached(
        self, trajectory: GuidedTrajectory, request: Request, rows: ShapeRange, mode: Mode
    ) -> Generator[Step]:
        """Yields the steps of a trajectory, some of them from the cache of its first block."""
        if mode.streamed:
            got = "a denoiser of which a part is in memory at a time"
            fix = "leave step_cache out, or run it where there is more memory"
            raise UsageError("step_cache", got=got, expected="its weights in memory", fix=fix)
        assert request.step_cache is not None  # noqa: S101 the caller asks first
        cache = FirstBlockCache(self._live.parts, request.step_cache.threshold, request.batch)
        while not trajectory.done:
            key = trajectory.conditions, self._live.swaps(DENOISER)
            predictions = cache.predict(rows, trajectory.shared, trajectory.ask(), key)
            yield replace(trajectory.tell(predictions), computed=cache.computed)

    def trajectory(self, encode: Encode, request: Request, mode: Mode) -> GuidedTrajectory:
        """Returns a request's trajectory before its first step, for `step_together`.

        Encodes the prompts and validates everything.
        """
        begun = self._begun(encode, request, mode)
        rows = self._rows(mode)
        sizes = self._input_sizes(begun.plan, begun.shared, rows, begun.table, begun.x)
        self._guard.check(DENOISER, sizes)
        return begun.trajectory(request)

    def step_together(
        self, trajectories: Sequence[GuidedTrajectory], mode: Mode
    ) -> list[Step | Exception]:
        """Makes a step of every trajectory in one memory mode; see `loop.step_together`."""
        rows = self._rows(mode)
        with self._live.generating(), self._live.using(DENOISER):
            return step_together(
                lambda inputs, shared: self._run_denoiser(rows, shared, inputs), trajectories
            )

    def _begun(self, encode: Encode, request: Request, mode: Mode) -> _Begun:
        """Encodes the prompts of a request and draws its first latents."""
        table = request_table(self._bundle, request)
        noise = check_noise(self._noise(request, table), request.batch)
        plan, shared = encode_conditions(self._bundle, encode, request, table)
        products = self._lora_inputs.products(request.loras, self._weights.loaded)
        x, mend = self._initial_latents(request, table, noise, mode)
        return _Begun(
            table=table,
            noise=noise,
            plan=plan.with_inputs(products.rows),
            shared={**shared, **products.shared},
            x=x,
            mend=mend,
        )

    def _undisturbed(self, steps: Generator[Step]) -> Iterator[Step]:
        """Yields the steps; while one is computed, no other thread changes weights or closes."""
        with closing(steps):
            while True:
                with self._live.generating():
                    step = next(steps, None)
                if step is None:
                    return
                yield step

    def _input_sizes(
        self, plan: GuidancePlan, shared: Inputs, rows: ShapeRange, table: SamplerTable, x: Array
    ) -> dict[str, int]:
        """Returns the largest size of each dimension of the denoiser's inputs in any step."""
        largest = max(denoiser_passes(plan, table), key=lambda each: len(each.conditions))
        count = min(len(largest.conditions) * len(x), rows.max)
        sample = np.broadcast_to(np.float32(0), (count, *x.shape[1:]))
        inputs = {**plan.inputs(largest), **shared, "sample": sample}
        sizes = sizes_of(inputs, self._bundle.components[DENOISER].inputs)
        return {**sizes, "batch": count}

    def _rows(self, mode: Mode) -> ShapeRange:
        """Returns the range of the denoiser's batch in this mode."""
        rows = self._bundle.components[DENOISER].ranges["batch"]
        if mode.rows is None:
            return rows
        most = max(rows.min, min(rows.max, mode.rows))
        return replace(rows, opt=min(rows.opt, most), max=most)

    def _run_denoiser(self, rows: ShapeRange, shared: Inputs, inputs: Inputs) -> Array:
        """Returns the denoiser's predictions, computed at most `rows.max` rows at a time."""
        return run_in_chunks(partial(self._run_held, DENOISER), rows, inputs, shared)["output"]

    def _noise(self, request: Request, table: SamplerTable) -> NoiseSource:
        """Returns the request's noise source.

        torch's streams begin with draw 1 if the caller passes `latents`, as in diffusers.
        """
        if callable(request.noise):
            return request.noise
        if request.noise == "philox":
            return PhiloxNoise(request.seeds)
        if request.noise == "brownian":
            span = (0.0, max(float(table.points.clock.training[-1]), table.level(0)))
            return BrownianNoise(request.seeds, noise_intervals(table), span, request.first_draw)
        first = first_noise(request.edit, has_latents=request.latents is not None)
        return TorchNoise(request.seeds, first=first)

    def _initial_latents(
        self, request: Request, table: SamplerTable, noise: NoiseSource, mode: Mode
    ) -> tuple[Array, Callable[[Array, int], Array]]:
        """Returns the initial latents (B, …), and the function that keeps what is outside a mask.

        Without a mask that function is `identity`.
        """
        shape = latent_shape(self._bundle.latents, request.height, request.width)
        pack, edit = partial(vae.pack, self._bundle), request.edit
        if edit is None:
            unit = pack(noise(0, shape)) if request.latents is None else request.latents
            return table.scale * unit, identity
        begin = request_schedule(self._bundle, request)[0]
        scale = np.float32(scheduler_scale(self._bundle, request, begin))
        if request.latents is not None and edit.mask is None:
            return request.latents / scale, identity
        original = pack(self._encoded(edit, noise, shape, mode))
        if edit.mask is None and not edit.noised:
            return original / scale, identity
        unit = pack(noise(1, shape)) if request.latents is None else request.latents
        x = original / scale
        if edit.noised:
            x = table.scale * unit if edit.from_noise else add_noise(original, unit, begin)
        if edit.brought:
            x = np.float32(noise_scale(self._bundle, request)) * unit
        if edit.mask is None:
            return x, identity
        mask = pack(np.broadcast_to(edit.mask, (request.batch, *shape)))
        return x, keep_outside_mask(mask, original, unit, table)

    def _encoded(self, edit: Edit, noise: NoiseSource, shape: tuple[int, ...], mode: Mode) -> Array:
        """Returns the latents of an edit's images, (B, C, h, w): the caller's, or encoded ones."""
        if edit.pixels is not None:
            return vae.encode(self._bundle, self.run, edit.pixels, noise(0, shape), mode.vae)
        assert edit.encoded is not None  # noqa: S101 an edit has one of them
        return edit.encoded
