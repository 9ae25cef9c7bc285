"""A pipeline's weights in layers: the bundle's own, updates that replace them, and LoRAs on top.

The layers are kept separate and merged again from the bundle's own weights at every change, so an
unloaded LoRA leaves no trace, not even a rounding error.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import Bundle
from eri_runtime.checks import finite, mapping
from eri_runtime.checks import path as check_path
from eri_runtime.checks import text as check_text
from eri_runtime.errors import UnknownNameError, UsageError, short
from eri_runtime.executors import Arrays
from eri_runtime.weights.live_weights import LiveWeights
from eri_runtime.weights.lora import (
    Adapter,
    Adapters,
    adapters,
    is_lora,
    lora_name,
    merged_weights,
    read_lora,
)
from eri_runtime.weights.token_rows import Rows, with_rows

Scale = float | Mapping[str, float]
"""The scale of a LoRA, for all components or by component."""
Source = str | Path | Mapping[str, Any]
"""A LoRA: a safetensors file, a folder with one, a Hub id, or tensors by key."""


@dataclass(frozen=True)
class Overlays:
    """The layers on top of a bundle's weights.

    Attributes:
        updates: Tensors that replace the bundle's, by component and weight.
        loaded: Loaded LoRAs by name.
        scales: Scales of the active LoRAs by name.
        rows: Rows that replace those of a component's table of token embeddings, by component.
    """

    updates: Mapping[str, Arrays] = field(default_factory=dict)
    loaded: Mapping[str, Adapters] = field(default_factory=dict)
    scales: Mapping[str, Scale] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)

    def changes(self, component: str) -> dict[str, list[tuple[Adapter, float]]]:
        """Returns the adapters and scales of each weight that the active LoRAs change."""
        changes: dict[str, list[tuple[Adapter, float]]] = {}
        for lora, scale in self.scales.items():
            strength = component_scale(scale, component)
            if strength:
                for name, adapters_of_weight in self.loaded[lora].get(component, {}).items():
                    changes.setdefault(name, []).extend(
                        (adapter, strength) for adapter in adapters_of_weight
                    )
        return changes

    def weights(self, component: str, stored: Arrays) -> Arrays:
        """Returns the weights of a component that differ from the `stored` ones, by name."""
        updates = self.updates.get(component, {})
        changes = {
            name: scaled
            for name, scaled in self.changes(component).items()
            if name in stored  # a LoRA may change weights that no output depends on
        }
        base = {name: updates.get(name, stored[name]) for name in changes}
        merged = merged_weights(base, changes, f"{component}: ")
        for values in merged.values():
            values.setflags(write=False)  # so that `LiveWeights` need not copy them
        changed = {**updates, **merged}
        return with_rows(component, stored, changed, self.rows.get(component, {}))

    def signature(self, component: str) -> tuple[Any, ...]:
        """Returns a value that determines a component's weights, to detect changes."""
        active = tuple(
            (id(self.loaded[lora][component]), component_scale(scale, component))
            for lora, scale in self.scales.items()
            if component in self.loaded[lora] and component_scale(scale, component)
        )
        rows = tuple((row, id(vector)) for row, vector in self.rows.get(component, {}).items())
        return id(self.updates.get(component)), active, rows


class WeightOverlays:
    """The updates and LoRAs of one pipeline. Threads may share it.

    A method that raises an error has changed nothing.

    Args:
        bundle: The bundle whose weights are at the bottom.
        live: The open components, which run with the merged weights.
    """

    def __init__(self, bundle: Bundle, live: LiveWeights) -> None:
        self._bundle, self._live = bundle, live
        self._overlays = Overlays()
        self._sources: dict[str, object] = {}
        self._lock = threading.RLock()

    @property
    def scales(self) -> Mapping[str, Scale]:
        """The active LoRAs with their scales, in the order they were named."""
        return self._overlays.scales

    @property
    def loaded(self) -> Mapping[str, Adapters]:
        """The loaded LoRAs by name, active or not."""
        return self._overlays.loaded

    def update(self, component: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Replaces weights of a component by copies of `tensors`, on top of earlier updates.

        Args:
            component: The component.
            tensors: Arrays by name, in the stored types and shapes.
        """
        copies = {name: np.array(values, order="C") for name, values in tensors.items()}
        for copy in copies.values():
            copy.setflags(write=False)
        with self._changing():
            overlays = self._overlays
            updated = {**overlays.updates.get(component, {}), **copies}
            self._apply(replace(overlays, updates={**overlays.updates, component: updated}))

    def reset(self, components: Collection[str]) -> None:
        """Removes the updates of these components."""
        with self._changing():
            kept = {k: v for k, v in self._overlays.updates.items() if k not in components}
            self._apply(replace(self._overlays, updates=kept))

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Waits for other threads' images, and lets only this thread change weights or generate."""
        with self._changing(), self._live.changing():
            yield

    def set_rows(self, rows: Mapping[str, Rows]) -> None:
        """Replaces all replaced rows of tables of token embeddings, (width,) float32 by row.

        Raises `NonFiniteError` for a value that the table's type does not hold, and `BackendError`
        if an engine cannot take new weights.
        """
        with self._changing():
            self._apply(replace(self._overlays, rows=rows))

    def load(self, source: Source, scale: Scale, name: str | None, *, partial: bool) -> str:
        """Loads a LoRA and activates it in addition to the others.

        Args:
            source: The path of a safetensors file or of a folder, an id of the Hub, or tensors by
                key.
            scale: The scale, for all components or by component.
            name: The LoRA's name. Default: the file's name without its suffix, or
                the folder's.
            partial: Whether to log keys that match no weight instead of raising.

        Returns:
            The LoRA's name.

        Raises:
            UsageError: If another LoRA has this name, tensors have none, or a scale is not finite.
            UnknownNameError: If `scale` names a component that does not exist.
            LoraError: If the LoRA does not fit; `UnmatchedKeysError` for keys that match no weight.
            NonFiniteError: If the LoRA holds NaN or Inf, or a merged weight overflows.
            BackendError: If an engine cannot take new weights.
        """
        if not isinstance(source, Mapping):
            check_path("LoRA", source)
        lora_name = _name(source) if name is None else check_text("name", name)
        with self._changing():
            overlays = self._read(lora_name, source, partial=partial)
            scales = {**overlays.scales, lora_name: scale}
            self._check_scales(scales, overlays)
            self._apply(replace(overlays, scales=scales), {lora_name: _identity(source)})
        return lora_name

    def set(self, scales: Mapping[str | Path, Scale], *, partial: bool = False) -> None:
        """Activates exactly these LoRAs.

        Args:
            scales: Scales by the name of a loaded LoRA, or by the path or Hub id of one to load.
            partial: Whether to log keys of a new one that match no weight instead of raising.

        Raises:
            UsageError: If a LoRA is listed twice, or a scale is not a finite number.
            UnknownNameError: If a name is neither a loaded LoRA nor a file.
            LoraError: If a LoRA does not fit.
        """
        with self._changing():
            overlays, sources, by_name = self._overlays, {}, {}
            if not isinstance(scales, Mapping):
                raise UsageError("loras", got=short(scales), expected="scales by name or path")
            for name_or_path, scale in scales.items():
                name = str(check_path("LoRA", name_or_path))
                if name not in overlays.loaded and is_lora(name):
                    name = _name(name)
                    overlays = self._read(name, name_or_path, partial=partial, onto=overlays)
                    sources[name] = _identity(name_or_path)
                by_name[name] = scale
            if len(by_name) < len(scales):
                got = list(map(str, scales))
                raise UsageError("loras", got=got, expected="each LoRA once")
            self._check_scales(by_name, overlays)
            self._apply(replace(overlays, scales=by_name), sources)

    def check_loaded(self, names: Iterable[str], what: str) -> None:
        """Raises `UnknownNameError`, for the argument `what`, for a LoRA that is not loaded."""
        for name in names:
            if name not in self.loaded:
                expected = ", ".join(map(short, self.loaded)) or "the name of a loaded LoRA"
                fix = "load it first, with `pipe.load_lora(FILE, 0, name=NAME)` or `--lora FILE`"
                raise UnknownNameError(what, got=short(name), expected=expected, fix=fix)

    def unload(self, names: Iterable[str]) -> None:
        """Unloads these LoRAs, or all of them if `names` is empty.

        Raises:
            UnknownNameError: If a LoRA is not loaded.
        """
        with self._changing():
            chosen = {check_text("name", name) for name in names}
            overlays, removed = self._overlays, chosen or set(self._overlays.loaded)
            self._check_loaded(removed, overlays)
            loaded = {name: lora for name, lora in overlays.loaded.items() if name not in removed}
            scales = {name: each for name, each in overlays.scales.items() if name not in removed}
            self._apply(replace(overlays, loaded=loaded, scales=scales))
            for name in removed:
                self._sources.pop(name, None)

    def _read(
        self, name: str, source: Source, *, partial: bool, onto: Overlays | None = None
    ) -> Overlays:
        """Returns the overlays with one more LoRA; does not read it again if it is loaded."""
        overlays = onto or self._overlays
        if name in overlays.loaded:
            if self._sources.get(name) == _identity(source):
                return overlays
            fix = "give it another with name=, or unload that one"
            raise UsageError(f"LoRA {name}", got="a name of another LoRA", expected="one", fix=fix)
        if isinstance(source, Mapping):
            tensors: Mapping[str, Any] = mapping("LoRA", source, "tensors by key")
        else:
            tensors = read_lora(source)
        shapes = {
            component: {**self._live.stored(component).shapes, **spec.unneeded}
            for component, spec in self._bundle.components.items()
        }
        lora = adapters(tensors, self._bundle.family, shapes, partial)
        return replace(overlays, loaded={**overlays.loaded, name: lora})

    def _check_scales(self, scales: Mapping[str, Scale], overlays: Overlays) -> None:
        """Raises `UnknownNameError` or `UsageError` for a bad LoRA, component or scale."""
        self._check_loaded(scales, overlays)
        for name, scale in scales.items():
            by_component = scale if isinstance(scale, Mapping) else {"": scale}
            for component, strength in by_component.items():
                if component and component not in self._bundle.components:
                    expected = ", ".join(self._bundle.components)
                    where = f"scale of {name}: component"
                    raise UnknownNameError(where, got=short(component), expected=expected)
                finite(f"scale of {name}", strength)

    def _check_loaded(self, names: Iterable[str], overlays: Overlays) -> None:
        """Raises `UnknownNameError` for a LoRA that is not loaded."""
        for name in names:
            if name not in overlays.loaded:
                loaded = ", ".join(map(short, overlays.loaded)) or "one that is loaded"
                expected = f"{loaded}, or a file, a folder or OWNER/NAME of the Hub"
                raise UnknownNameError("LoRA", got=short(name), expected=expected)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Returns a context for one change at a time.

        Raises `UsageError` in a callback of an image while another thread's change waits for it.
        """
        if not self._lock.acquire(blocking=not self._live.generates_here):
            got = "a call from within one image while another thread makes one"
            raise UsageError("new weights", got=got, expected="a call between images")
        try:
            yield
        finally:
            self._lock.release()

    def _apply(self, overlays: Overlays, sources: Mapping[str, object] | None = None) -> None:
        """Merges the overlays and sets the weights of the components that they change."""
        changed = {
            name: overlays.weights(name, self._live.stored(name))
            for name in self._bundle.components
            if overlays.signature(name) != self._overlays.signature(name)
        }
        if changed:
            self._live.set_all(changed)
        self._overlays = overlays
        self._sources.update(sources or {})


def component_scale(scale: Scale, component: str) -> float:
    """Returns the scale of one component; 1 if a mapping omits it, as in diffusers."""
    return scale.get(component, 1.0) if isinstance(scale, Mapping) else scale


def _name(source: Source) -> str:
    """Returns the name of a file or folder; raises `UsageError` for tensors."""
    if isinstance(source, Mapping):
        expected = "a name= for it"
        raise UsageError("LoRA", got="tensors that are no file", expected=expected)
    return lora_name(source)


def _identity(source: Source) -> object:
    """Returns what identifies a LoRA's source; tensors without a file never compare equal."""
    if isinstance(source, Mapping):
        return object()
    try:
        return Path(source).resolve()
    except (OSError, ValueError):  # no valid path; reading it says so
        return str(source)


def describe_loras(scales: Mapping[str, Scale]) -> Iterator[str]:
    """Yields each active LoRA with its scale, as `style: 0.5` or `style: denoiser 0.5`."""
    for name, scale in scales.items():
        if isinstance(scale, Mapping):
            yield f"{name}: " + ", ".join(f"{part} {value:g}" for part, value in scale.items())
        else:
            yield f"{name}: {scale:g}"
