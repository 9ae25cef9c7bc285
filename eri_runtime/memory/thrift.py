"""One pipeline's dealings with memory: its modes, and how an engine is opened for each of them."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Mapping
from dataclasses import replace

from eri_runtime.ahead import after_texts, load_of, may_step, planned
from eri_runtime.errors import UsageError
from eri_runtime.executors import Engine
from eri_runtime.executors.base import Settings
from eri_runtime.live import DENOISER, LiveWeights, OpenComponent, OpenStep
from eri_runtime.loops import Loop
from eri_runtime.memory.backoff import Attempt, BackOff, Load, Means
from eri_runtime.memory.estimate import stage_need
from eri_runtime.memory.guard import Guard
from eri_runtime.memory.mode import MemoryEfficientSamplingConfig, Mode
from eri_runtime.request import Request
from eri_runtime.spec import Bundle
from eri_runtime.vae import DECODER, ENCODER

ON_HOST = ("cpu", "openvino", "openvino:bf16")  # whose memory is the machine's


class Thrift:
    """Lets what is open of a bundle be in the mode that a request is to run in."""

    def __init__(
        self,
        bundle: Bundle,
        live: LiveWeights,
        opener: OpenComponent,
        memory: MemoryEfficientSamplingConfig,
        loop: Loop,
    ) -> None:
        """`opener` can change its mode if it is an `Engine`.

        Raises `UsageError` for a `memory` that bundle or engine have not.
        """
        self._live, self._loop = live, loop
        self._engine = opener if isinstance(opener, Engine) else None
        self._settings = self._engine.settings if self._engine else Settings()
        check(bundle, self._engine, memory, loop)
        self.guard = Guard(self._need)
        self._back_off = BackOff(memory.mode, means_of(bundle, self._engine, loop))
        self._adopt(memory.mode)

    def attempt(self, load: Load) -> Attempt:
        """A request of this size, on its way through the modes."""
        self.guard.forget()
        return self._back_off.attempt(load, self._adopt, self._free)

    def open_ahead(self, request: Request) -> None:
        """Begin to open what runs after a request's text encoders, if memory does for all of it."""
        mode = self._back_off.mode_of(load_of(request))
        if self._engine is None or self._engine.name not in ON_HOST or mode.offloaded:
            return
        settings = settings_of(self._engine.settings, mode)
        if settings != self._settings or settings.streamed:
            return
        bundle = self._engine.bundle
        whole = planned(bundle, request, mode)
        coming = [
            stage
            for stage in after_texts(whole, request)
            if not self._live.at_hand(stage.component)
        ]
        if coming and self.guard.holds(self._need(each.component, each.sizes) for each in whole):
            stepping = may_step(bundle, request)
            for stage in coming:
                self._live.open_ahead(stage.component, stage.sizes, stepping=stepping)

    def finished(self, mode: Mode) -> None:
        """Close what a mode keeps open no longer than needed."""
        if mode.offloaded:
            self._free()

    def _need(self, component: str, sizes: Mapping[str, int]) -> int | None:
        """Bytes that a run takes beyond what is held; None where nobody knows."""
        if self._engine is None or self._engine.name not in ON_HOST:
            return None
        return stage_need(
            self._engine.bundle,
            self._engine.name,
            self._settings,
            component,
            sizes,
            is_open=self._live.is_open(component),
        )

    def _adopt(self, mode: Mode) -> None:
        """Let all that is opened from now on be opened as `mode` says."""
        if self._live.is_shared:  # with another thread's request: no looser than that one's
            mode = mode.but(offloaded=mode.offloaded or self._live.one_at_a_time)
        self._live.one_at_a_time = mode.offloaded
        if self._engine is None or self._live.is_shared:
            return
        settings = settings_of(self._engine.settings, mode)
        if settings != self._settings:
            engine = replace(self._engine, settings=settings)
            self._live.open_with(engine, self._stepper(engine))
            self._settings = settings

    def _stepper(self, engine: Engine) -> OpenStep:
        return engine.stepper if self._loop != "numpy" else lambda _: None

    def _free(self) -> None:
        """Close all that is not in use, and give what it held back to the system."""
        self._live.close_idle()
        self.guard.forget()
        gc.collect()
        trim()


def settings_of(settings: Settings, mode: Mode) -> Settings:
    """An engine's own settings, and those of a mode."""
    low_memory = settings.low_memory or mode.low_memory
    return replace(settings, low_memory=low_memory, streamed=mode.streamed)


def means_of(bundle: Bundle, engine: Engine | None, loop: Loop) -> Means:
    """What can be done about memory with an engine."""
    halves = [name for name in (DECODER, ENCODER) if name in bundle.components]
    return Means(
        rows=loop != "step",
        tiles={name: tile_sides(bundle, name) for name in halves},
        mapped=engine is not None and engine.backend.maps_weights,
        streamed=unstreamed(engine, loop) is None,
    )


def tile_sides(bundle: Bundle, half: str) -> range:
    """The sides in pixels that a half of the VAE takes, as it was exported."""
    ranges = bundle.components[half].ranges
    prefix, factor = ("image_", 1) if half == ENCODER else ("", bundle.latents.factor)
    sides = [ranges[f"{prefix}{name}"] for name in ("height", "width")]
    low, high = max(each.min for each in sides), min(each.max for each in sides)
    return range(low * factor, high * factor + 1)


def check(
    bundle: Bundle, engine: Engine | None, memory: MemoryEfficientSamplingConfig, loop: Loop
) -> None:
    """Raise `UsageError` for what bundle, engine or loop have not."""
    if memory.enable_sequential_cpu_offload and (reason := unstreamed(engine, loop)):
        expected = "a bundle and an engine that read the denoiser's weights in parts"
        raise UsageError("enable_sequential_cpu_offload", got=reason, expected=expected)
    if not memory.enable_attention_slicing:
        return
    found, wanted = bundle.components[DENOISER].attention_slice, memory.slice_size
    if found is None or wanted not in (None, found):
        got = "a bundle with whole attention" if found is None else f"slices of {found} heads"
        fix = f"export again with `--attention-slice {wanted or 'auto'}`"
        expected = "a bundle with slices" if wanted is None else f"slices of {wanted} heads"
        raise UsageError("enable_attention_slicing", got=got, expected=expected, fix=fix)


def unstreamed(engine: Engine | None, loop: Loop) -> str | None:
    """Why the denoiser's weights cannot be read in parts, or None."""
    if engine is None:
        return "components opened by a function of the caller's"
    spec = engine.bundle.components[DENOISER]
    reason = engine.backend.unstreamed(spec)
    if reason is None and loop == "step" and engine.backend.in_segments:
        reason = "loop='step', whose graph is one"
    return reason


def trim() -> None:
    """Let glibc give free memory back, which it keeps otherwise."""
    if sys.platform == "linux":
        trim_heap = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim_heap is not None:
            trim_heap(0)
