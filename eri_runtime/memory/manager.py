"""Manages the memory of one pipeline: its modes, and the engine options that each of them needs."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace

from eri_runtime.bundle import DENOISER, Bundle
from eri_runtime.checks import instance
from eri_runtime.errors import UsageError
from eri_runtime.executors import Engine, Settings, trim_heap
from eri_runtime.latents import DECODER, ENCODER
from eri_runtime.loop import Loop
from eri_runtime.memory.estimate import stage_need
from eri_runtime.memory.fallbacks import Attempt, BackOff, Capabilities, RequestSize
from eri_runtime.memory.guard import Guard
from eri_runtime.memory.modes import MemoryEfficientSamplingConfig, Mode
from eri_runtime.memory.request_stages import (
    may_use_step_graph,
    request_size,
    request_stages,
    stages_after_text,
)
from eri_runtime.request import Request
from eri_runtime.weights import LiveWeights, OpenComponent, OpenStep

ON_HOST = ("cpu", "openvino", "openvino:bf16")  # backends that use the machine's memory


class _Needs:
    """Estimates the memory of runs with the current settings of an engine.

    It is apart from the manager so that the manager's guard does not refer back to the manager: the
    cycle would keep a dropped pipeline in memory.
    """

    def __init__(self, engine: Engine | None, live: LiveWeights) -> None:
        self._engine, self._live = engine, live
        self.settings = engine.settings if engine else Settings()

    def __call__(self, component: str, sizes: Mapping[str, int]) -> int | None:
        """Returns how many bytes a run takes in addition to what is in memory; None if unknown."""
        if self._engine is None or self._engine.name not in ON_HOST:
            return None
        return stage_need(
            self._engine.bundle,
            self._engine.name,
            self.settings,
            component,
            sizes,
            is_open=self._live.is_open(component),
        )


class MemoryManager:
    """Opens a pipeline's components in the mode that a request needs."""

    def __init__(
        self,
        bundle: Bundle,
        live: LiveWeights,
        opener: OpenComponent,
        memory: MemoryEfficientSamplingConfig,
        loop: Loop,
    ) -> None:
        """Checks `memory` and puts `live` into its mode.

        Engine options can change only if `opener` is an `Engine`. Raises `UsageError` if bundle,
        engine or loop do not support what `memory` requires.
        """
        self._live, self._loop = live, loop
        self._engine = opener if isinstance(opener, Engine) else None
        self._need = _Needs(self._engine, live)
        check_config(bundle, self._engine, memory, loop)
        self.guard = Guard(self._need)
        self._back_off = BackOff(memory.mode, capabilities_of(bundle, self._engine, loop))
        self._adopt(memory.mode)

    def attempt(self, size: RequestSize) -> Attempt:
        """Starts a request of this size; its `next_mode` changes the mode after an error."""
        self.guard.forget()
        return self.next_step(size)

    def next_step(self, size: RequestSize) -> Attempt:
        """Starts a step of requests that have begun, together of this size.

        Unlike `attempt` it trusts the guard's memory: reading what is left takes longer than a
        small step.
        """
        return self._back_off.attempt(size, self._adopt, self._free)

    def open_ahead(self, request: Request) -> None:
        """Starts to open what runs after the text encoders, if memory suffices for all of it."""
        mode = self._back_off.mode_of(request_size(request))
        if self._engine is None or self._engine.name not in ON_HOST or mode.offloaded:
            return
        settings = engine_settings(self._engine.settings, mode)
        if settings != self._need.settings or settings.streamed:
            return
        bundle = self._engine.bundle
        planned = request_stages(bundle, request, mode)
        closed = [
            stage
            for stage in stages_after_text(planned, request)
            if not self._live.is_open_or_opening(stage.component)
        ]
        needs = (self._need(stage.component, stage.sizes) for stage in planned)
        if closed and self.guard.holds(needs):
            stepping = may_use_step_graph(bundle, request)
            parted = request.step_cache is not None
            for stage in closed:
                self._live.open_ahead(
                    stage.component, stage.sizes, stepping=stepping, parted=parted
                )

    def release(self, mode: Mode) -> None:
        """Closes components after a request, if its mode keeps none of them open."""
        if mode.offloaded:
            self._free()

    def _adopt(self, mode: Mode) -> None:
        """Opens components as `mode` requires from now on."""
        with self._live.alone() as alone:
            # if another thread's request runs, keep its mode where that is stricter
            offloaded = mode.offloaded or (self._live.one_at_a_time and not alone)
            self._live.one_at_a_time = offloaded
            if self._engine is None or not alone:
                return
            settings = engine_settings(self._engine.settings, mode)
            if settings != self._need.settings:
                engine = replace(self._engine, settings=settings)
                self._live.open_with(engine, self._stepper(engine), engine.parted)
                self._need.settings = settings

    def _stepper(self, engine: Engine) -> OpenStep:
        return engine.stepper if self._loop != "numpy" else lambda _: None

    def _free(self) -> None:
        """Closes everything that is not in use, and returns its memory to the system."""
        self._live.close_idle()
        self.guard.forget()
        gc.collect()
        trim_heap()


def engine_settings(settings: Settings, mode: Mode) -> Settings:
    """Combines an engine's settings with those of a mode."""
    low_memory = settings.low_memory or mode.low_memory
    return replace(settings, low_memory=low_memory, streamed=mode.streamed)


def capabilities_of(bundle: Bundle, engine: Engine | None, loop: Loop) -> Capabilities:
    """Returns what can be done to use less memory."""
    halves = [name for name in (DECODER, ENCODER) if name in bundle.components]
    return Capabilities(
        rows=loop != "step",
        tiles={name: tile_sides(bundle, name) for name in halves},
        mapped=engine is not None and engine.backend.can_map_weights,
        streamed=streaming_refusal(engine, loop) is None,
    )


def tile_sides(bundle: Bundle, half: str) -> range:
    """Returns the sides in pixels that the VAE's encoder or decoder accepts, as it was exported."""
    ranges = bundle.components[half].ranges
    prefix, factor = ("image_", 1) if half == ENCODER else ("", bundle.latents.factor)
    sides = [ranges[f"{prefix}{name}"] for name in ("height", "width")]
    low, high = max(side.min for side in sides), min(side.max for side in sides)
    return range(low * factor, high * factor + 1)


def check_config(
    bundle: Bundle, engine: Engine | None, memory: MemoryEfficientSamplingConfig, loop: Loop
) -> None:
    """Raises `UsageError` if bundle, engine or loop do not support what `memory` requires."""
    instance("memory", memory, MemoryEfficientSamplingConfig)
    if memory.enable_sequential_cpu_offload and (reason := streaming_refusal(engine, loop)):
        expected = "a bundle and an engine that read the denoiser's weights in parts"
        raise UsageError("enable_sequential_cpu_offload", got=reason, expected=expected)
    if not memory.enable_attention_slicing:
        return
    exported, wanted = bundle.components[DENOISER].attention_slice, memory.slice_size
    if exported is None or wanted not in (None, exported):
        got = "a bundle with whole attention" if exported is None else f"slices of {exported} heads"
        fix = f"export again with `--attention-slice {wanted or 'auto'}`"
        expected = "a bundle with slices" if wanted is None else f"slices of {wanted} heads"
        raise UsageError("enable_attention_slicing", got=got, expected=expected, fix=fix)


def streaming_refusal(engine: Engine | None, loop: Loop) -> str | None:
    """Returns why the denoiser's weights cannot be read in parts, or None."""
    if engine is None:
        return "components opened by a function of the caller's"
    spec = engine.bundle.components[DENOISER]
    reason = engine.backend.streaming_refusal(spec)
    if reason is None and loop == "step" and engine.backend.streams_in_segments:
        reason = "loop='step', whose graph is one"
    return reason
