"""A request's course through the components of a bundle, in a mode: no retries, no remembering."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from eri_runtime import vae
from eri_runtime.brownian import BrownianNoise, intervals_of
from eri_runtime.denoise import Array, Step, check_start, denoise, unchanged
from eri_runtime.editing import begun, keep_outside, noised
from eri_runtime.guided import Guided, Inputs, guided_network
from eri_runtime.guiding import Encode, guide
from eri_runtime.latents import latent_shape, token_count
from eri_runtime.live import DENOISER, LiveWeights
from eri_runtime.loops import Loops
from eri_runtime.lora_inputs import LoraInputs
from eri_runtime.loras import WeightLayers
from eri_runtime.memory.exhausted import ended, is_exhausted
from eri_runtime.memory.guard import Guard, sizes_of
from eri_runtime.memory.mode import Mode
from eri_runtime.noise import NoiseSource, PhiloxNoise, TorchNoise, checked
from eri_runtime.pieces import in_pieces
from eri_runtime.request import Request
from eri_runtime.schedule import Schedule
from eri_runtime.spec import Bundle, ShapeRange
from eri_runtime.stepping import passes, stepped
from eri_runtime.table import SamplerTable, make_table


class Course:
    """What a pipeline's requests have in common: the bundle, what is open of it, and its loops."""

    def __init__(
        self, bundle: Bundle, live: LiveWeights, weights: WeightLayers, loops: Loops, guard: Guard
    ) -> None:
        self._bundle, self._live, self._weights, self._loops = bundle, live, weights, loops
        self._inputs, self._guard = LoraInputs(bundle.components[DENOISER]), guard

    def run(self, name: str, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """One component; raises `OutOfMemoryError` that names it where memory ends, or would."""
        self._guard.check(name, sizes_of(inputs, self._bundle.components[name].inputs))
        try:
            return self._live.executor(name).run(inputs)
        except Exception as error:
            if is_exhausted(error):
                raise ended(name, error) from error
            raise

    def steps(
        self, encode: Encode, request: Request, start: Step | None, mode: Mode
    ) -> Iterator[Step]:
        """The steps of a request after `start`, or all; a bad request is refused before any."""
        table = self.table(request)
        noise = checked(self._noise(request, table), request.batch)
        conditions = guide(self._bundle, encode, request, table.points.clock)
        guided, shared = self._inputs.beside(request.loras, self._weights.loaded, *conditions)
        x, mend = self._begin(request, table, noise, mode)
        if start is not None:
            check_start(start, table, x.shape)
        draw, changed = request.first_draw, request.hook is not unchanged or mend is not unchanged
        rows = self._rows(mode)

        def taken() -> Iterator[Step]:
            with self._live.using(DENOISER):
                self._guard.check(DENOISER, self._sizes(guided, shared, rows, table, x))
                stepper = self._loops.choose(guided, table, request.batch, rows, changed=changed)
                begin = start or x
                if stepper is not None:
                    yield from stepped(
                        stepper, guided, shared, rows, table, begin, noise, draw=draw
                    )
                    return
                network = guided_network(partial(self._denoiser, rows, shared), guided)
                yield from denoise(
                    network, table, begin, noise, hook=request.hook, mend=mend, draw=draw
                )

        return taken()

    def _sizes(
        self, guided: Guided, shared: Inputs, rows: ShapeRange, table: SamplerTable, x: Array
    ) -> dict[str, int]:
        """The largest sizes of the denoiser's inputs in a step."""
        largest = max(passes(guided, table), key=lambda each: len(each.used))
        count = min(len(largest.used) * len(x), rows.max)
        sample = np.broadcast_to(np.float32(0), (count, *x.shape[1:]))
        inputs = {**guided.inputs(largest), **shared, "sample": sample}
        sizes = sizes_of(inputs, self._bundle.components[DENOISER].inputs)
        return {**sizes, "batch": count}

    def schedule(self, request: Request) -> Schedule:
        """The points a request passes; of an edit, those that its strength leaves."""
        tokens = token_count(self._bundle.latents, request.height, request.width)
        spec = self._bundle.schedule
        whole = request.sampler.schedule(spec, request.steps, tokens, request.sigmas)
        return whole if request.edit is None else begun(whole, request.edit)

    def table(self, request: Request) -> SamplerTable:
        """The sampler's coefficients for a request."""
        schedule, spec = self.schedule(request), self._bundle.schedule
        return make_table(request.sampler, schedule, spec, options=request.options)

    def _rows(self, mode: Mode) -> ShapeRange:
        """How many rows the denoiser is given at once."""
        rows = self._bundle.components[DENOISER].ranges["batch"]
        if mode.rows is None:
            return rows
        most = max(rows.min, min(rows.max, mode.rows))
        return replace(rows, opt=min(rows.opt, most), max=most)

    def _denoiser(self, rows: ShapeRange, shared: Inputs, inputs: Inputs) -> Array:
        return in_pieces(partial(self.run, DENOISER), rows, inputs, shared)["output"]

    def _noise(self, request: Request, table: SamplerTable) -> NoiseSource:
        if callable(request.noise):
            return request.noise
        if request.noise == "philox":
            return PhiloxNoise(request.seeds)
        if request.noise == "brownian":
            span = (0.0, float(table.points.clock.training[-1]))
            return BrownianNoise(request.seeds, intervals_of(table), span, request.first_draw)
        brought = request.latents is not None and request.edit is None
        return TorchNoise(request.seeds, first=int(brought))

    def _begin(
        self, request: Request, table: SamplerTable, noise: NoiseSource, mode: Mode
    ) -> tuple[Array, Callable[[Array, int], Array]]:
        """The first latents, and what an edit does to every state after them."""
        shape = latent_shape(self._bundle.latents, request.height, request.width)
        pack, edit = partial(vae.pack, self._bundle), request.edit
        if edit is None:
            unit = pack(noise(0, shape)) if request.latents is None else request.latents
            return table.scale * unit, unchanged
        encoded = vae.encode(self._bundle, self.run, edit.pixels, noise(0, shape), mode.vae)
        original = pack(encoded)
        unit = pack(noise(1, shape)) if request.latents is None else request.latents
        begin = self.schedule(request)[0]
        x = table.scale * unit if edit.from_noise else noised(original, unit, begin)
        if edit.mask is None:
            return x, unchanged
        mask = pack(np.broadcast_to(edit.mask, (request.batch, *shape)))
        return x, keep_outside(mask, original, unit, table)
